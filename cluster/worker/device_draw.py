"""DeviceDraw: rows with filters, drawn where their logits are; the host is told the ids alone.

Owns the merge of the ranks' offers on the device. The draw itself is a kernel's; what it may draw,
and the host's own way, are in `candidates`. Rows that reach beyond the offer are left to the host.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.kernels.kernels import DrawOffered
from cluster.model.tp_group import TPGroup
from cluster.worker.candidates import Filters
from cluster.worker.exchange import gather
from cluster.worker.logit_slices import Shares
from cluster.worker.noise import MAX_VOCAB

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class DeviceDraw:
    """One rank's; all ranks draw alike."""

    def __init__(self, group: TPGroup, local_vocab: int, draw: DrawOffered) -> None:
        self._group = group
        self._local_vocab = local_vocab
        self._draw = draw

    def draw(
        self, sums: Tensor, local: Shares, few: tuple[Tensor, Tensor], filters: Filters
    ) -> tuple[Ints, Bools] | None:
        """(ids, health) [n]; None where the offer of some row does not suffice.

        Args:
            sums: [n] of this rank's logits, before anything was banned.
            few: this rank's best logits and their ids [n, W], as float32.
        """
        sums, peak, mass, values, ids = gather(self._group, [sums, local.peak, local.mass, *few])
        merged, floor = self._merge(values, ids)
        peaks, masses = _side_by_side(peak), _side_by_side(mass)
        top = peaks.amax(-1)
        lse = top + (masses * (peaks - top.unsqueeze(-1)).exp()).sum(-1).log()
        tokens, covered = self._draw((*merged, floor), lse, _on(filters, sums.device), MAX_VOCAB)
        healthy = sums.isfinite().all(0) & top.isfinite()
        told = torch.stack((tokens, covered | ~healthy, healthy)).cpu().numpy()  # the one wait
        if not told[1].all():
            return None
        return told[0], told[2].astype(np.bool_)

    def _merge(self, values: Tensor, ids: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Of [R, n, W]: the best W of each row with their ids, and what may be missing [n]."""
        ranks, rows, width = values.shape
        floor = values.new_full((rows,), -math.inf)
        if width < self._local_vocab:
            floor = values[:, :, -1].amax(0)
        best, at = _side_by_side(values).topk(width, -1)
        if ranks > 1:
            floor = torch.maximum(floor, best[:, -1])
        return (best, _side_by_side(ids).gather(1, at).long()), floor


def _side_by_side(gathered: Tensor) -> Tensor:
    """[R, n, k] -> [n, R * k], rank 0's columns first."""
    return torch.cat(gathered.unbind(0), -1)


def _on(filters: Filters, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[n] each: top_p, log of min_p, top_k and keys; keys as the same bits in int64."""
    parts: Sequence[npt.NDArray[np.generic]] = (*filters[:3], filters.keys.view(np.int64))
    top_p, min_p_log, top_k, keys = (
        torch.from_numpy(np.ascontiguousarray(part[:, 0])).to(device) for part in parts
    )
    return top_p, min_p_log, top_k, keys
