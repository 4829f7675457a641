"""OpenDraw: drawing from the whole vocabulary, for rows without filters or with wide kept sets.

Owns the inverse distribution function over fixed slices, and top-p without sorting: an id x is in
the smallest set that holds top_p of the mass if and only if less than top_p lies on higher values.
So a proposal is drawn, and where it is not in the set, drawn anew among the higher values only:
the set lies wholly in there, so what is accepted has the distribution of the set.

    u picks the slice by the slices' sums, then the id by the running sum within it; only the rank
    that holds the slice can do that, and tells the others

Every number compared is a sum in a fixed order over a fixed slice: all ranks agree, at any number
of ranks and rows. Knows no requests.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.model.tp_group import TPGroup
from cluster.worker.exchange import exchange, side_by_side
from cluster.worker.noise import uniform

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class OpenRows(NamedTuple):
    """n rows to draw: tensors of this rank's ids, and small host arrays."""

    logits: Tensor
    """[m, slices, width] after temperature, of m >= n rows"""
    shares: Tensor
    """[m, slices, width] of each slice's sum"""
    numbers: Ints
    """[n] which of the m rows these are"""
    weights: Floats
    """[n, all slices] sums of all ranks' slices, relative to one value per row"""
    keys: npt.NDArray[np.uint64]
    """[n, 1]"""
    top_p: Floats
    """[n, 1]; inf: no limit"""
    above: Floats
    """[n, 1] only ids with higher values count; -inf: all"""

    def rows(self, index: Ints) -> "OpenRows":
        small = (part[index] for part in self[2:])
        return OpenRows._make((self.logits, self.shares, *small))


class OpenDraw:
    """The draws of one rank, which all ranks make together."""

    def __init__(self, group: TPGroup, first_id: int, width: int) -> None:
        """`first_id` of this rank's share; `width` of a slice."""
        self._group = group
        self._first_id = first_id
        self._width = width

    def draw(self, rows: OpenRows) -> Ints:
        """Ids [n], the same on every rank."""
        left = rows.weights
        if (rows.above > -math.inf).any():
            left = self._weights_above(rows, rows.above)
        ids, values = self._propose(rows, left, attempt=0)
        enough = rows.top_p * rows.weights.sum(-1, keepdims=True, dtype=np.float64)
        undecided = np.flatnonzero(enough < math.inf)
        rows, values, enough = rows.rows(undecided), values[undecided], enough[undecided]
        attempt = 0
        while len(undecided):
            left = self._weights_above(rows, values)
            again = np.flatnonzero(left.sum(-1, keepdims=True, dtype=np.float64) >= enough)
            if not len(again):
                break
            attempt += 1
            rows = rows.rows(again)._replace(above=values[again])
            enough, undecided = enough[again], undecided[again]
            ids[undecided], values = self._propose(rows, left[again], attempt)
        return ids

    def _propose(self, rows: OpenRows, left: Floats, attempt: int) -> tuple[Ints, Floats]:
        """Ids [n] and their values [n, 1], drawn in proportion among what is above."""
        running = left.cumsum(-1, dtype=np.float64)
        whole = running[:, -1:]
        target = uniform(rows.keys, attempt) * whole
        chosen = np.minimum((running <= target).sum(-1), (running < whole).sum(-1))
        chosen = np.minimum(chosen, left.shape[1] - 1)[:, np.newaxis]
        size = np.take_along_axis(left, chosen, -1).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            inner = (target - (np.take_along_axis(running, chosen, -1) - size)) / size
        count = rows.shares.shape[1]
        local = chosen - self._group.rank * count
        here = (local >= 0) & (local < count)
        at, values = self._within(rows, local.clip(0, count - 1), inner)
        ids = self._first_id + local * self._width + at
        if self._group.size == 1:
            return ids[:, 0], values
        ids_here = np.where(here, ids, -1).astype(np.float32)
        values_here = np.where(here, values, np.float32(-math.inf))
        both = [torch.from_numpy(part).to(rows.logits.device) for part in (ids_here, values_here)]
        all_ids, all_values = exchange(self._group, both)
        return all_ids.max(0)[:, 0].astype(np.int64), all_values.max(0)

    def _within(
        self, rows: OpenRows, local: Ints, inner: npt.NDArray[np.float64]
    ) -> tuple[Ints, Floats]:
        """Index within the chosen slice [n, 1], and the value there [n, 1]."""
        device = rows.logits.device
        which = torch.from_numpy(np.stack((rows.numbers, local[:, 0]))).to(device)
        logits = rows.logits[which[0], which[1]]
        above = torch.from_numpy(rows.above).to(device)
        shares = rows.shares[which[0], which[1]].masked_fill_(~(logits > above), 0.0)
        running = shares.cumsum(-1, dtype=torch.float64)
        whole = running[:, -1:].contiguous()
        wanted = torch.from_numpy(inner.clip(0.0, 1.0)).to(device) * whole
        at = torch.searchsorted(running, wanted, right=True)
        at = torch.minimum(at, torch.searchsorted(running, whole)).clamp_(max=self._width - 1)
        return at.cpu().numpy(), logits.gather(1, at).cpu().numpy()

    def _weights_above(self, rows: OpenRows, values: Floats) -> Floats:
        """[n, all slices]: what each slice weighs when only higher values count."""
        device = rows.logits.device
        logits, shares = rows.logits, rows.shares
        if len(rows.numbers) < len(logits):
            which = torch.from_numpy(rows.numbers).to(device)
            logits, shares = logits[which], shares[which]
        higher = logits > torch.from_numpy(values).to(device).unsqueeze(-1)
        sums = torch.where(higher, shares, 0.0).sum(-1)
        return side_by_side(exchange(self._group, [sums])[0]) * rows.weights
