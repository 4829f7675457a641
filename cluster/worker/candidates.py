"""Candidates: drawing among the few likeliest ids, for rows with top-k, top-p or min-p.

Owns how the ranks' offers of a row are merged, and the draw. The kept set is "values >= cutoff", so
it depends on values only; a row whose kept set reaches beyond what was offered says so and is drawn
otherwise. Host arrays, a few dozen columns wide. Knows no requests.

    offered   5.1  4.0  3.9  2.2 | floor 2.2: lower values, and equals, may be missing
    kept      5.1  4.0             2 < the 3 complete ones: covered
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.worker.exchange import side_by_side
from cluster.worker.noise import MAX_VOCAB, gumbel

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Filters(NamedTuple):
    """Of n rows, [n, 1] each."""

    top_p: Floats
    """inf: no limit."""
    min_p_log: Floats
    """-inf: no limit."""
    top_k: Ints
    """MAX_VOCAB: no limit."""
    keys: npt.NDArray[np.uint64]

    @classmethod
    def of(
        cls, top_p: Floats, min_p: Floats, top_k: Ints, keys: npt.NDArray[np.uint64]
    ) -> "Filters":
        """From arrays [n] in which 1, 0 and 0 mean no limit."""
        with np.errstate(divide="ignore"):
            return cls(
                np.where(top_p < 1, top_p, np.float32(math.inf))[:, np.newaxis],
                np.log(min_p)[:, np.newaxis],
                np.where(top_k > 0, np.minimum(top_k, MAX_VOCAB), MAX_VOCAB)[:, np.newaxis],
                keys,
            )

    def rows(self, index: Ints) -> "Filters":
        return Filters._make(part[index] for part in self)


class Offer(NamedTuple):
    """What all ranks offered for n rows."""

    values: Floats
    """[n, C], descending"""
    ids: Ints
    """[n, C]"""
    floor: Floats
    """[n, 1] values at or below it may be missing; -inf: nothing is missing."""

    @classmethod
    def merge(cls, values: Floats, ids: Floats, width: int, local_vocab: int) -> "Offer":
        """From offers [R, n, W] of ranks with `local_vocab` ids: the best `width` of each row."""
        ranks, rows, offered = values.shape
        floor = np.full((rows, 1), -math.inf, np.float32)
        if offered < local_vocab:
            floor = values[:, :, -1].max(0)[:, np.newaxis]
        if ranks == 1:
            return cls(values[0], ids[0].astype(np.int64), floor)
        kept = min(max(width, offered), ranks * offered)
        everyone = side_by_side(values)
        order = np.argsort(-everyone, axis=-1, kind="stable")[:, :kept]
        best = np.take_along_axis(everyone, order, -1)
        if kept < ranks * offered:
            floor = np.maximum(floor, best[:, -1:])
        return cls(best, np.take_along_axis(side_by_side(ids), order, -1).astype(np.int64), floor)


def draw_offered(offer: Offer, lse: Floats, filters: Filters, narrow: int) -> tuple[Ints, Bools]:
    """Draw where the offer suffices: ids [n], and [n] whether it did.

    Args:
        lse: [n, 1] of the whole row.
        narrow: rows without top_k may not use more values than these, though others made the
            offer wider: how a row is drawn must not depend on its neighbours.
    """
    values, ids, floor = offer
    last = values.shape[1] - 1
    limited = filters.top_k < MAX_VOCAB
    if last >= narrow:
        floor = np.where(limited, floor, values[:, narrow - 1 : narrow])
    with np.errstate(invalid="ignore"):
        mass = np.exp(values - lse)
        least = values[:, :1] + filters.min_p_log
    below = mass.cumsum(-1)
    at_k = np.take_along_axis(below, np.minimum(filters.top_k - 1, last), -1)
    total = np.where(filters.top_k <= last + 1, at_k, np.float32(1))
    count = ((below - mass) < filters.top_p * total).sum(-1, keepdims=True)
    count = np.minimum(count, (values >= least).sum(-1, keepdims=True))
    count = np.maximum(np.minimum(count, filters.top_k), 1)
    cutoff = np.take_along_axis(values, np.minimum(count - 1, last), -1)
    complete = (values > floor).sum(-1, keepdims=True)
    covered = (count < complete) & (~limited | (filters.top_k <= complete)) | (floor == -math.inf)
    columns = max(1, int((values >= cutoff).sum(-1).max(initial=0)))
    scores = values[:, :columns] + gumbel(filters.keys, ids[:, :columns])
    scores[values[:, :columns] < cutoff] = -math.inf
    best = scores.argmax(-1)
    return ids[np.arange(len(ids)), best], covered[:, 0]
