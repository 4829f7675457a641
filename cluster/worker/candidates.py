"""Candidates: drawing among the few likeliest ids, for rows with top-k, top-p or min-p.

Owns what ranks offer of a row, how offers are merged, and the draw. The kept set is "values >=
cutoff", so it depends on values only; a row whose kept set reaches beyond what was offered says so
and is drawn otherwise. Knows no requests.

    offered   5.1  4.0  3.9  2.2 | floor 2.2: lower values, and equals, may be missing
    kept      5.1  4.0             2 < the 3 complete ones: covered
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cluster.worker.exchange import side_by_side
from cluster.worker.noise import MAX_VOCAB, gumbel


class Filters(NamedTuple):
    """Device tensors [n, 1] of n rows."""

    top_p: Tensor
    """inf: no limit."""
    min_p_log: Tensor
    """-inf: no limit."""
    top_k: Tensor
    """MAX_VOCAB: no limit."""
    keys: Tensor

    @classmethod
    def of(
        cls,
        top_p: np.ndarray[tuple[int], np.dtype[np.float32]],
        min_p: np.ndarray[tuple[int], np.dtype[np.float32]],
        top_k: np.ndarray[tuple[int], np.dtype[np.int64]],
        keys: Tensor,
    ) -> "Filters":
        """From host arrays [n], in which 1, 0 and 0 mean no limit."""
        with np.errstate(divide="ignore"):
            columns = (
                np.where(top_p < 1, top_p, np.float32(math.inf)),
                np.log(min_p),
                np.where(top_k > 0, np.minimum(top_k, MAX_VOCAB), MAX_VOCAB),
            )
        on_device = [torch.from_numpy(column).to(keys.device).unsqueeze(1) for column in columns]
        return cls._make([*on_device, keys])

    def rows(self, index: Tensor) -> "Filters":
        return Filters._make(part[index] for part in self)


class Offer(NamedTuple):
    """What all ranks offered for n rows."""

    values: Tensor
    """[n, C], descending"""
    ids: Tensor
    """[n, C], float32"""
    floor: Tensor
    """[n, 1] values at or below it may be missing; -inf: nothing is missing."""

    @classmethod
    def merge(cls, values: Tensor, ids: Tensor, width: int, local_vocab: int) -> "Offer":
        """From offers [R, n, W] of ranks with `local_vocab` ids: the best `width` of each row."""
        ranks, rows, offered = values.shape
        floor = values.new_full((rows, 1), -math.inf)
        if offered < local_vocab:
            floor = values[:, :, -1].amax(0).unsqueeze(1)
        if ranks == 1:
            return cls(values[0], ids[0], floor)
        kept = min(max(width, offered), ranks * offered)
        top, order = side_by_side(values).topk(kept, -1)
        if kept < ranks * offered:
            floor = torch.maximum(floor, top[:, -1:])
        return cls(top, side_by_side(ids).gather(1, order), floor)


def draw_offered(offer: Offer, lse: Tensor, filters: Filters, narrow: int) -> tuple[Tensor, Tensor]:
    """Draw where the offer suffices: ids int64 [n], and bool [n] whether it did.

    Args:
        lse: [n, 1] of the whole row.
        narrow: rows without top_k may not use more values than these, though others made the
            offer wider: how a row is drawn must not depend on its neighbours.
    """
    values, ids, floor = offer
    last = values.shape[1] - 1
    limited = filters.top_k < MAX_VOCAB
    if last >= narrow:
        floor = torch.where(limited, floor, values[:, narrow - 1 : narrow])
    mass = (values - lse).exp()
    below = mass.cumsum(-1)
    rank_k = (filters.top_k - 1).clamp(max=last)
    total = torch.where(filters.top_k <= last + 1, below.gather(1, rank_k), 1.0)
    count = ((below - mass) < filters.top_p * total).sum(-1, keepdim=True)
    count = torch.minimum(count, (values >= values[:, :1] + filters.min_p_log).sum(-1, True))
    count = torch.minimum(count, filters.top_k).clamp(min=1)
    cutoff = values.gather(1, (count - 1).clamp(max=last))
    complete = (values > floor).sum(-1, keepdim=True)
    covered = (count < complete) & (~limited | (filters.top_k <= complete)) | (floor == -math.inf)
    scores = (values + gumbel(filters.keys, ids.long())).masked_fill_(values < cutoff, -math.inf)
    at = scores.argmax(-1, keepdim=True)
    return ids.gather(1, at)[:, 0].long(), covered[:, 0]
