"""LogitSlices: rows of logits, split by vocabulary, as the sampler reads them.

Owns the reductions over a rank's share of the vocabulary: the best id, the best few, and sums. Sums
are made per slice, and the slices are the same ones whatever the number of ranks and rows, so that
what is built from them has the same bits. Knows no noise and no requests.

    vocabulary   [ slice 0 | slice 1 | ... | slice 7 ]
    2 ranks      [       rank 0      |     rank 1    ]
    peak, mass   per slice: max x, sum exp(x - peak);  the whole: a pairwise tree over 8 slices
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]

NUM_SLICES = 8
_CHUNK = 128
_GROUP = 16
_SMALL = 4096


class SliceSums(NamedTuple):
    """Of n rows: each slice's highest value and its sum relative to that, [n, slices]."""

    peak: Floats
    mass: Floats

    def weights(self) -> tuple[Floats, Floats]:
        """(highest value of the row [n, 1], every slice's sum relative to it [n, slices])."""
        peak = self.peak.max(-1, keepdims=True)
        with np.errstate(invalid="ignore"):
            return peak, self.mass * np.exp(self.peak - peak)

    def logsumexp(self) -> Floats:
        """Of all slices given, [n, 1]."""
        peak, weights = self.weights()
        with np.errstate(divide="ignore"):
            return peak + np.log(tree_sum(weights))


class LogitSlices:
    """How one rank's share of the vocabulary is cut."""

    def __init__(self, vocab_size: int, ranks: int) -> None:
        even = vocab_size % NUM_SLICES == 0 and NUM_SLICES % ranks == 0
        self.local = NUM_SLICES // ranks if even else 1
        """Slices of one rank."""
        self.width = vocab_size // ranks // self.local
        """Ids of one slice."""

    def shares(self, logits: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """[n, V / R] -> every id's share of its slice [n, slices, width], and `SliceSums` as
        tensors. The shares of a slice without any finite value mean nothing.

        Args:
            out: where to write the shares: fresh memory is dearer than the sums.
        """
        sliced = logits.view(-1, self.local, self.width)
        if out is None:
            out = torch.empty_like(sliced)
        shares = torch.softmax(sliced, -1, out=out.view_as(sliced))
        peak = sliced.amax(-1)
        mass = shares.amax(-1).reciprocal_().masked_fill_(peak == -math.inf, 0.0)
        return shares, peak, mass


def tree_sum(values: Floats) -> Floats:
    """[n, k] -> [n, 1]: neighbours are added, then their sums, until one is left."""
    while values.shape[1] > 1:
        if values.shape[1] % 2:
            values = np.pad(values, ((0, 0), (0, 1)))
        values = values[:, ::2] + values[:, 1::2]
    return values


def best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The highest value of each row and the first index that has it, [n] each.

    Finding a maximum is much cheaper than finding where it is, so that is done for one chunk.
    """
    rows, size = logits.shape
    if size % _CHUNK or size < _SMALL:
        values, at = logits.max(-1)
        return values, at
    chunks = logits.view(rows, size // _CHUNK, _CHUNK)
    values, chunk = chunks.amax(-1).max(-1)
    at = chunks[torch.arange(rows, device=logits.device), chunk].argmax(-1)
    return values, at + chunk * _CHUNK


def top(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` highest values of each row, descending, and their indices, [n, width] each.

    In long rows only the groups with the highest maxima are looked into: whatever belongs to the
    highest values lies in one of them, or equals one that does.
    """
    rows, size = logits.shape
    if size % _GROUP or size < _SMALL or width * _GROUP >= size // 2:
        values, at = logits.topk(width, -1)
        return values, at
    groups = logits.view(rows, _GROUP, size // _GROUP)  # group j: ids j + i * size / _GROUP
    chosen = groups.amax(1).topk(width, -1, sorted=False).indices.unsqueeze(1)
    some = groups.gather(2, chosen.expand(-1, _GROUP, -1)).view(rows, width * _GROUP)
    values, at = some.topk(width, -1)
    group = chosen.squeeze(1).gather(1, at % width)
    return values, group + at // width * (size // _GROUP)
