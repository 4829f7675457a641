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

import torch
from torch import Tensor

from cluster.model.parallel import TPGroup
from cluster.worker.exchange import exchange, side_by_side
from cluster.worker.noise import uniform


class OpenRows(NamedTuple):
    """n rows to draw; Vl = slices * width ids are here."""

    logits: Tensor
    """[n, slices, width] after temperature"""
    shares: Tensor
    """[n, slices, width] of each slice's sum"""
    weights: Tensor
    """[n, all slices] sums of all ranks' slices, relative to one value per row"""
    keys: Tensor
    """int64 [n, 1]"""
    top_p: Tensor
    """[n, 1]; inf: no limit"""
    above: Tensor
    """[n, 1] only ids with higher values count; -inf: all"""

    def rows(self, index: Tensor) -> "OpenRows":
        return OpenRows._make(part[index] for part in self)


class OpenDraw:
    """The draws of one rank, which all ranks make together."""

    def __init__(self, group: TPGroup, first_id: int, width: int) -> None:
        """`first_id` of this rank's share; `width` of a slice."""
        self._group = group
        self._first_id = first_id
        self._width = width

    def draw(self, rows: OpenRows, *, limited: bool, narrowed: bool) -> Tensor:
        """Ids int64 [n], the same on every rank.

        Args:
            limited: whether any row's top_p is a limit.
            narrowed: whether any row's `above` is.
        """
        weights = rows.weights
        left = self._weights_above(rows, weights, rows.above) if narrowed else weights
        ids, values = self._propose(rows, left, attempt=0)
        if not limited:
            return ids
        open_rows = torch.arange(len(ids), device=ids.device)
        enough = rows.top_p * weights.sum(-1, True, dtype=torch.float64)
        attempt = 0
        while True:
            left = self._weights_above(rows, weights, values)
            again = (left.sum(-1, True, dtype=torch.float64) >= enough)[:, 0].nonzero()[:, 0]
            if not len(again):
                return ids
            attempt += 1
            rows = rows.rows(again)._replace(above=values[again])
            weights, left, enough = weights[again], left[again], enough[again]
            open_rows = open_rows[again]
            ids[open_rows], values = self._propose(rows, left, attempt)

    def _propose(self, rows: OpenRows, left: Tensor, attempt: int) -> tuple[Tensor, Tensor]:
        """Ids [n] and their values [n, 1], drawn in proportion among what is above."""
        running = left.double().cumsum(-1)
        target = uniform(rows.keys, attempt) * running[:, -1:]
        chosen = (running <= target).sum(-1, keepdim=True)
        chosen = torch.minimum(chosen, (running < running[:, -1:]).sum(-1, keepdim=True))
        chosen = chosen.clamp_(max=left.shape[1] - 1)
        size = left.gather(1, chosen).double()
        inner = (target - (running.gather(1, chosen) - size)) / size
        count = rows.shares.shape[1]
        local = chosen - self._group.rank * count
        here = (local >= 0) & (local < count)
        at, values = self._within(rows, local.clamp(0, count - 1), inner)
        ids = (self._first_id + local * self._width + at).float().masked_fill(~here, -1.0)
        if self._group.size == 1:
            return ids[:, 0].long(), values
        both = exchange(self._group, [ids, values.masked_fill(~here, -math.inf)])
        return both[0].amax(0)[:, 0].long(), both[1].amax(0)

    def _within(self, rows: OpenRows, local: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        """Index within the chosen slice [n, 1], and the value there [n, 1]."""
        number = torch.arange(len(local), device=local.device)
        logits = rows.logits[number, local[:, 0]]
        shares = rows.shares[number, local[:, 0]].masked_fill(~(logits > rows.above), 0.0)
        running = shares.cumsum(-1, dtype=torch.float64)
        whole = running[:, -1:].contiguous()
        at = torch.searchsorted(running, inner.clamp(0.0, 1.0) * whole, right=True)
        at = torch.minimum(at, torch.searchsorted(running, whole))
        at = at.clamp_(max=self._width - 1)
        return at, logits.gather(1, at)

    def _weights_above(self, rows: OpenRows, weights: Tensor, values: Tensor) -> Tensor:
        """[n, all slices]: what each slice weighs when only higher values count."""
        higher = rows.shares.masked_fill(~(rows.logits > values.unsqueeze(-1)), 0.0).sum(-1)
        if self._group.size > 1:
            higher = side_by_side(exchange(self._group, [higher])[0])
        return higher * weights
