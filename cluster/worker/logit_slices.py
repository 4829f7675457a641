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


class Shares(NamedTuple):
    """A rank's logits, reduced."""

    shares: Tensor
    """[n, slices, width] of each slice's sum; mean nothing in a slice without a finite value"""
    peak: Tensor
    """[n, slices], as in `SliceSums` ..."""
    mass: Tensor
    """... like this."""
    maxima: Tensor
    """[n, slices, width / 16] of groups of 16 (group j: ids j + i * width / 16 of a slice)"""


class LogitSlices:
    """How one rank's share of the vocabulary is cut."""

    def __init__(self, vocab_size: int, ranks: int) -> None:
        even = vocab_size % NUM_SLICES == 0 and NUM_SLICES % ranks == 0
        self.local = NUM_SLICES // ranks if even else 1
        """Slices of one rank."""
        self.width = vocab_size // ranks // self.local
        """Ids of one slice."""
        self._group = _GROUP if self.width % _GROUP == 0 else 1

    def shares(self, logits: Tensor, out: Tensor | None = None) -> Shares:
        """Of [n, V / R]: one pass for the softmax of every slice, one for all maxima.

        Args:
            out: where to write the shares: fresh memory is dearer than the sums.
        """
        sliced = logits.view(-1, self.local, self.width)
        if out is None:
            out = torch.empty_like(sliced)
        shares = torch.softmax(sliced, -1, out=out.view_as(sliced))
        maxima = sliced.view(len(logits), self.local, self._group, -1).amax(2)  # strided groups
        peak, group = maxima.max(-1)
        few = group.unsqueeze(-1) + self._members(logits)
        at = few.gather(-1, sliced.gather(-1, few).argmax(-1, keepdim=True))
        mass = shares.gather(-1, at).squeeze(-1).reciprocal_()  # the highest value's is 1 / sum
        return Shares(shares, peak, mass.masked_fill_(peak == -math.inf, 0.0), maxima)

    def top(self, logits: Tensor, maxima: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The `width` highest values of each row, descending, and their indices, [n, width] each.

        Only the groups with the highest maxima are looked into: whatever belongs to the highest
        values lies in one of them, or equals one that does.
        """
        size = logits.shape[1]
        if width * self._group >= size // 2:
            values, at = logits.topk(width, -1)
            return values, at
        chosen = _highest(maxima.flatten(1), width)
        per_slice = maxima.shape[-1]
        first = chosen // per_slice * self.width + chosen % per_slice
        few = (first.unsqueeze(1) + self._members(logits).unsqueeze(-1)).flatten(1)
        few = few.gather(1, _highest(logits.gather(1, few), width))
        values, order = logits.gather(1, few).sort(-1, descending=True)
        return values, few.gather(1, order)

    def _members(self, logits: Tensor) -> Tensor:
        """How far the members of a group are from its first, [16]."""
        step = self.width // self._group
        return torch.arange(0, self.width, step, device=logits.device)[: self._group]


def _highest(values: Tensor, width: int) -> Tensor:
    """Where the `width` highest of each row are, in any order; on a CPU numpy finds them sooner."""
    if values.device.type != "cpu":
        return values.topk(width, -1, sorted=False).indices
    return torch.from_numpy(np.argpartition(values.numpy(), -width, -1)[:, -width:])


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
