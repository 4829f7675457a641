"""DeviceDraw: tokens drawn where their logits are; nothing waits for the host.

Owns the merge of the ranks' offers on the device, for greedy rows and for rows with filters. The
draw of the latter is a kernel's; what it may draw, and the host's own way, are in `candidates`.
Rows that reach beyond the offer are told apart, and left to the host.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.device import Arriving, sent
from cluster.kernels.kernels import DrawOffered
from cluster.model.tp_group import TPGroup
from cluster.worker.candidates import Filters
from cluster.worker.drawn import Told
from cluster.worker.exchange import gather
from cluster.worker.noise import MAX_VOCAB

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Offers(NamedTuple):
    """What a rank has to say about S rows, all float32: g greedy ones, n with filters."""

    sums: Tensor
    """[S], of this rank's logits before anything was banned"""
    best: Tensor
    """[g] the highest logit ..."""
    best_ids: Tensor
    """[g] ... and its id"""
    peak: Tensor
    """[n, slices], and ..."""
    mass: Tensor
    """... see `logit_slices`"""
    values: Tensor
    """[n, W] the best logits, descending, ..."""
    ids: Tensor
    """[n, W] ... and their ids"""


class DeviceDraw:
    """One rank's; all ranks draw alike."""

    def __init__(
        self,
        group: TPGroup,
        local_vocab: int,
        draw: DrawOffered,
        fetch: Callable[[Tensor], Arriving] = Arriving,
    ) -> None:
        self._group = group
        self._local_vocab = local_vocab
        self._draw = draw
        self._fetch = fetch

    def best(self, sums: Tensor, best: Tensor, best_ids: Tensor, forced: Ints | None) -> Told:
        """Every row is greedy; arguments as in `Offers`, `forced` as in SamplingBatch."""
        sums, best, best_ids = gather(self._group, (sums, best, best_ids))
        tokens, found = _winners(best, best_ids)
        return self._told(tokens, torch.ones_like(found), sums.isfinite().all(0) & found, forced)

    def mixed(self, offers: Offers, filters: Filters, chance: Bools, forced: Ints | None) -> Told:
        """`chance` [S]: the rows with filters, whose `filters` are; the others are greedy."""
        sums, best, best_ids, *by_chance = gather(self._group, offers)
        tokens, covered, found = self._by_chance(by_chance, filters)
        if not chance.all():
            winners, won = _winners(best, best_ids)
            order = np.argsort(np.concatenate((np.flatnonzero(~chance), np.flatnonzero(chance))))
            place = sent(order, sums.device)
            tokens = torch.cat((winners, tokens))[place]
            covered = torch.cat((torch.ones_like(won), covered))[place]
            found = torch.cat((won, found))[place]
        return self._told(tokens, covered, sums.isfinite().all(0) & found, forced)

    def _by_chance(
        self, gathered: Sequence[Tensor], filters: Filters
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(ids, whether the offer sufficed, whether some id was left) [n]"""
        peak, mass, values, ids = gathered
        merged, floor = self._merge(values, ids)
        peaks, masses = _side_by_side(peak), _side_by_side(mass)
        top = peaks.amax(-1)
        lse = top + (masses * (peaks - top.unsqueeze(-1)).exp()).sum(-1).log()
        tokens, covered = self._draw((*merged, floor), lse, _on(filters, lse.device), MAX_VOCAB)
        return tokens, covered, top.isfinite()

    def _told(self, tokens: Tensor, covered: Tensor, healthy: Tensor, forced: Ints | None) -> Told:
        if forced is not None:
            ids = sent(forced, tokens.device)
            tokens = torch.where(ids >= 0, ids, tokens)
        tokens = torch.where(healthy, tokens, 0)
        told = torch.stack((tokens, covered | ~healthy, healthy))
        return Told(told[0], self._fetch(told))

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


def _winners(best: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """From [R, g] each: the id with the highest value, of equals the lowest, and whether it is a
    number."""
    top = best.amax(0)
    found = top.isfinite()
    lowest = torch.where(best == top, ids, math.inf).amin(0)
    return torch.where(found, lowest, 0.0).long(), found


def _side_by_side(gathered: Tensor) -> Tensor:
    """[R, n, k] -> [n, R * k], rank 0's columns first."""
    return torch.cat(gathered.unbind(0), -1)


def _on(filters: Filters, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[n] each: top_p, log of min_p, top_k and keys; keys as the same bits in int64."""
    parts: Sequence[npt.NDArray[np.generic]] = (*filters[:3], filters.keys.view(np.int64))
    top_p, min_p_log, top_k, keys = (
        sent(np.ascontiguousarray(part[:, 0]), device) for part in parts
    )
    return top_p, min_p_log, top_k, keys
