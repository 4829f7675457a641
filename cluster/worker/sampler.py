"""Sampler: this rank's logits in, the drawn token ids out, the same on every rank.

Owns the filters (temperature, top_k, top_p, min_p, in this order) and the draw. Refuses to know
requests and batches beyond the arrays it is given; noise comes from `noise`.

The draw is the maximum of logit / temperature + Gumbel noise over the ids that the filters keep,
which is an exact draw from their softmax. Noise is keyed by token id, so ranks agree on it without
speaking, and full logits are never gathered in the common case:

    row kind       each rank offers                       decided by
    greedy         its best logit and id                  the maximum over ranks
    unfiltered     its best noisy logit and id            the maximum over ranks
    filtered       its W best logits and ids, logsumexp   the union of the offers

A rank's unoffered ids are not above its smallest offer, so the union is complete above the highest
of the ranks' smallest offers (`floor`). A row whose kept set reaches that floor is asked again
with a W 16 times as large, at last with the whole vocabulary.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.model.parallel import TPGroup
from cluster.worker.noise import gumbel, row_keys

OFFERED = 64
"""First W; larger when a row's top_k is."""
GREEDY_BELOW = 1e-5
"""Temperatures this small are greedy: dividing by less would overflow float32."""
MAX_VOCAB = 1 << 24
"""Ids travel between ranks as float32, which is exact up to here."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class SamplingBatch:
    """Host arrays [S], one entry per sampling row."""

    temperature: Floats
    top_p: Floats
    min_p: Floats
    top_k: Ints
    seed: Ints
    position: Ints
    """Index of the token to draw within its sequence, prompt included."""
    banned_rows: Ints
    """[M] index of a sampling row ..."""
    banned_ids: Ints
    """[M] ... and an id that it must not draw now."""


class _Filters(NamedTuple):
    """Device tensors [n, 1] of the filtered rows still to be decided."""

    top_p: Tensor
    min_p_log: Tensor
    top_k: Tensor
    keys: Tensor


class _Offer(NamedTuple):
    """What ranks offered for n rows: values [n, C] descending, ids [n, C], logsumexp [n, 1]."""

    values: Tensor
    ids: Tensor
    lse: Tensor
    floor: Tensor | None
    """[n, 1] values at or below it may be missing; None: nothing is missing."""


class Sampler:
    """Draws one token per row from vocabulary-parallel logits."""

    def __init__(self, group: TPGroup, vocab_size: int, num_real_tokens: int) -> None:
        """`num_real_tokens`: ids at or above it exist in the model only and are never drawn."""
        if vocab_size > MAX_VOCAB:
            raise ValueError(f"a vocabulary of {vocab_size} is larger than {MAX_VOCAB}")
        self._group = group
        self._local_vocab = vocab_size // group.size
        self._first_id = group.rank * self._local_vocab
        self._real_local = min(max(num_real_tokens - self._first_id, 0), self._local_vocab)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> tuple[Tensor, Tensor]:
        """Draw.

        Args:
            logits: [S, V / R], this rank's slice; overwritten.

        Returns:
            ids int64 [S], and bool [S]: whether the row's logits were finite and some id was left;
            where it is False the id means nothing.
        """
        logits = logits.float()
        finite = logits.isfinite().all(-1)
        self._ban(logits, batch)
        keys = row_keys(batch.seed, batch.position).to(logits.device).unsqueeze(1)
        greedy = batch.temperature < GREEDY_BELOW
        filtered = ~greedy & ((batch.top_p < 1) | (batch.top_k > 0) | (batch.min_p > 0))
        if not greedy.all():
            temperature = np.where(greedy, np.float32(1), batch.temperature)
            logits = logits / torch.from_numpy(temperature).to(logits.device).unsqueeze(1)
        plain_rows = _rows(~filtered, logits.device)
        filter_rows = _rows(filtered, logits.device)

        best, best_ids = self._offer_best(logits, plain_rows, keys, greedy[~filtered])
        width = max(OFFERED, _power_of_two_above(int(batch.top_k[filtered].max(initial=0))))
        values, ids, lse = self._offer_candidates(logits[filter_rows], width)
        gathered = self._exchange([finite.float(), best, best_ids, values, ids, lse])
        finite = gathered[0].amin(0) > 0

        tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        if len(plain_rows):
            best, winner = gathered[1].max(0)
            finite[plain_rows] &= best.isfinite()
            tokens[plain_rows] = gathered[2].gather(0, winner.unsqueeze(0))[0].long()
        if len(filter_rows):
            filters = self._filters(batch, filtered, keys[filter_rows])
            offer = self._merge(gathered[3:], width)
            drawn, best = self._draw_filtered(logits[filter_rows], offer, filters, width)
            finite[filter_rows] &= best.isfinite()
            tokens[filter_rows] = drawn
        return tokens, finite

    def _ban(self, logits: Tensor, batch: SamplingBatch) -> None:
        """-inf for ids without a token, and for the ids that rows must not draw now."""
        if self._real_local < self._local_vocab:
            logits[:, self._real_local :] = -math.inf
        if len(batch.banned_ids):
            local = batch.banned_ids - self._first_id
            here = (local >= 0) & (local < self._local_vocab)
            rows = torch.from_numpy(batch.banned_rows[here]).to(logits.device)
            columns = torch.from_numpy(local[here]).to(logits.device)
            logits[rows, columns] = -math.inf

    def _offer_best(
        self, logits: Tensor, rows: Tensor, keys: Tensor, greedy: npt.NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor]:
        """Best score and id of this rank for greedy and unfiltered rows, float32 [n] each."""
        scores = logits[rows]
        noisy = np.flatnonzero(~greedy)
        if len(noisy):
            index = torch.from_numpy(noisy).to(logits.device)
            ids = torch.arange(self._local_vocab, device=logits.device) + self._first_id
            scores[index] += gumbel(keys[rows[index]], ids)
        best, at = scores.max(-1)
        return best, (at + self._first_id).float()

    def _offer_candidates(self, logits: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's best `width` logits and ids [n, W] (as float32) and logsumexp [n, 1]."""
        width = min(width, self._local_vocab)
        if not len(logits):
            empty = logits.new_empty((0, width))
            return empty, empty, logits.new_empty((0, 1))
        values, at = logits.topk(width, -1)
        return values, (at + self._first_id).float(), logits.logsumexp(-1, keepdim=True)

    def _exchange(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """All-gather several float32 tensors in one collective; each comes back as [R, *shape]."""
        ranks = self._group.size
        if ranks == 1:
            return [part.unsqueeze(0) for part in parts]
        packed = self._group.all_gather(torch.cat([part.reshape(-1) for part in parts]))
        sizes = [part.numel() for part in parts]
        pieces = torch.split(packed.view(ranks, -1), sizes, dim=1)
        return [
            piece.reshape(ranks, *part.shape) for piece, part in zip(pieces, parts, strict=True)
        ]

    def _merge(self, gathered: Sequence[Tensor], width: int) -> _Offer:
        """Offers [R, n, W] -> one descending list per row, and down to where it is complete."""
        values, ids, lse = gathered
        ranks, rows, offered = values.shape
        floor = None
        if offered < self._local_vocab:
            floor = values[:, :, -1].amax(0).unsqueeze(1)
        if ranks == 1:
            return _Offer(values[0], ids[0], lse[0], floor)
        kept = min(max(width, offered), ranks * offered)
        top, order = values.transpose(0, 1).reshape(rows, -1).topk(kept, -1)
        ids = ids.transpose(0, 1).reshape(rows, -1).gather(1, order)
        if kept < ranks * offered:
            lowest = top[:, -1:]
            floor = lowest if floor is None else torch.maximum(floor, lowest)
        return _Offer(top, ids, lse.logsumexp(0), floor)

    def _filters(self, batch: SamplingBatch, rows: npt.NDArray[np.bool_], keys: Tensor) -> _Filters:
        top_k = batch.top_k[rows]
        top_k = np.where(top_k > 0, np.minimum(top_k, MAX_VOCAB), MAX_VOCAB)
        top_p = np.where(batch.top_p[rows] < 1, batch.top_p[rows], np.float32(math.inf))
        with np.errstate(divide="ignore"):
            min_p_log = np.log(batch.min_p[rows])
        columns = [torch.from_numpy(a).to(keys.device) for a in (top_p, min_p_log, top_k)]
        return _Filters._make([*(column.unsqueeze(1) for column in columns), keys])

    def _draw_filtered(
        self, logits: Tensor, offer: _Offer, filters: _Filters, width: int
    ) -> tuple[Tensor, Tensor]:
        """Ids [n] and their scores [n]; rows that need more are asked again, on all ranks."""
        tokens, scores, covered = _draw(offer, filters)
        if offer.floor is None:
            return tokens, scores
        open_rows = (~covered).nonzero().squeeze(1)
        while len(open_rows):
            width = min(width * 16, self._local_vocab * self._group.size)
            again = logits[open_rows]
            offer = self._merge(self._exchange(self._offer_candidates(again, width)), width)
            narrowed = _Filters._make(part[open_rows] for part in filters)
            tokens[open_rows], scores[open_rows], covered = _draw(offer, narrowed)
            if offer.floor is None:
                break
            open_rows = open_rows[~covered]
        return tokens, scores


def _draw(offer: _Offer, filters: _Filters) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the filters to descending values and draw: ids [n], scores [n], covered bool [n].

    The kept set is "values >= cutoff": it depends on values only, never on the order of equal ones.
    """
    values, ids, lse, floor = offer
    last = values.shape[1] - 1
    mass = (values - lse).exp()
    below = mass.cumsum(-1)
    rank_k = (filters.top_k - 1).clamp(max=last)
    total = torch.where(filters.top_k <= last + 1, below.gather(1, rank_k), 1.0)
    count = ((below - mass) < filters.top_p * total).sum(-1, keepdim=True)
    count = torch.minimum(count, (values >= values[:, :1] + filters.min_p_log).sum(-1, True))
    count = torch.minimum(count, filters.top_k).clamp(min=1)
    cutoff = values.gather(1, (count - 1).clamp(max=last))
    if floor is None:
        covered = torch.ones_like(count, dtype=torch.bool)
    else:
        complete = (values > floor).sum(-1, keepdim=True)
        limited = filters.top_k < MAX_VOCAB
        covered = (count < complete) & (~limited | (filters.top_k <= complete))
    kept = values >= cutoff
    columns = max(1, int(kept.sum(-1).max()))
    scores = values[:, :columns] + gumbel(filters.keys, ids[:, :columns].long())
    best, at = scores.masked_fill_(~kept[:, :columns], -math.inf).max(-1, keepdim=True)
    return ids.gather(1, at)[:, 0].long(), best[:, 0], covered[:, 0]


def _rows(selected: npt.NDArray[np.bool_], device: torch.device) -> Tensor:
    return torch.from_numpy(np.flatnonzero(selected)).to(device)


def _power_of_two_above(value: int) -> int:
    """Smallest power of two greater than `value`."""
    return 1 << value.bit_length()
