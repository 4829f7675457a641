"""Sampler: one token per row from vocabulary-parallel logits, the same on every rank.

Owns temperature, bans, and which rows are drawn how. Logits are never gathered: ranks exchange a
few hundred numbers per row, all rows in one collective, then decide alike.

    greedy rows     the best id of every rank
    filtered rows   top-k, top-p, min-p: each rank's W best logits (`candidates`)
    open rows       no filter, or a kept set wider than the offer: sums of slices (`open_draw`)

Randomness is a function of (seed, position, token id or attempt) alone, see `noise`.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.model.parallel import TPGroup
from cluster.request import TokenLogprobs
from cluster.worker.candidates import Filters, Offer, draw_offered
from cluster.worker.exchange import exchange, side_by_side
from cluster.worker.logit_slices import LogitSlices, SliceSums, best, finite_rows, top
from cluster.worker.logprobs import token_logprobs
from cluster.worker.noise import MAX_VOCAB, row_keys
from cluster.worker.open_draw import OpenDraw, OpenRows

OFFERED = 64
"""First W; larger when a row's top_k is."""
GREEDY_BELOW = 1e-5
"""Temperatures this small are greedy: dividing by less would overflow float32."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class SamplingBatch:
    """Host arrays [S], one entry per sampling position."""

    temperature: Floats
    top_p: Floats
    min_p: Floats
    top_k: Ints
    seed: Ints
    position: Ints
    """Index of the token to draw within its sequence, prompt included."""
    banned_rows: Ints
    """[M] index of a sampling position ..."""
    banned_ids: Ints
    """[M] ... and an id that must not be drawn there."""
    num_logprobs: Ints | None = None
    """How many of the likeliest tokens to name; -1: not even the drawn one's logprob. None: all
    -1."""


class Drawn(NamedTuple):
    """What was drawn at S positions."""

    token_ids: Tensor
    """int64 [S]"""
    healthy: Tensor
    """bool [S]: the logits were finite and some id was left; where not, the id means nothing."""
    logprobs: list[TokenLogprobs | None] | None
    """Per position, None where not asked for; None if nobody asked."""


class _Scaled(NamedTuple):
    """The rows that are drawn by chance, after temperature."""

    logits: Tensor
    """[n, V / R]"""
    shares: Tensor
    """[n, slices, width] of each slice's sum"""
    keys: Tensor
    """int64 [n, 1]"""


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
        self._slices = LogitSlices(vocab_size, group.size)
        self._open = OpenDraw(group, self._first_id, self._slices.width)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Drawn:
        """Draw.

        Args:
            logits: [S, V / R], this rank's slice; overwritten.
        """
        logits = logits.float()
        finite = finite_rows(logits).float()
        self._ban(logits, batch)
        chance = batch.temperature >= GREEDY_BELOW
        if not chance.any():
            tokens, healthy = self._draw_greedy(logits, finite)
        else:
            tokens, healthy = self._draw_mixed(logits, finite, batch, chance)
        return Drawn(tokens, healthy, self._logprobs(logits, tokens, batch.num_logprobs))

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

    def _draw_greedy(self, logits: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
        values, at = best(logits)
        if self._group.size == 1:
            return at, (finite > 0) & values.isfinite()
        gathered = exchange(self._group, [finite, values, (at + self._first_id).float()])
        return _winners(*gathered)

    def _draw_mixed(
        self, logits: Tensor, finite: Tensor, batch: SamplingBatch, chance: Bools
    ) -> tuple[Tensor, Tensor]:
        """Greedy rows and rows by chance, with one exchange for what nearly all rows need."""
        device = logits.device
        by_chance, greedy = _index(chance, device), _index(~chance, device)
        values, at = best(logits[greedy])
        temperature = torch.from_numpy(batch.temperature[chance]).to(device).unsqueeze(1)
        scaled = (logits if chance.all() else logits[by_chance]) / temperature
        shares, sums = self._slices.shares(scaled)
        filtered = ((batch.top_p < 1) | (batch.top_k > 0) | (batch.min_p > 0))[chance]
        width = max(OFFERED, _power_of_two_above(int(batch.top_k[chance].max(initial=0))))
        few = self._offer(scaled, _index(filtered, device), width)
        finite_all, values_all, ids_all, peak, mass, *offers = exchange(
            self._group, [finite, values, (at + self._first_id).float(), *sums, *few]
        )
        healthy = finite_all.amin(0) > 0
        tokens = torch.empty(len(logits), dtype=torch.int64, device=device)
        ones = torch.ones_like(values_all)
        tokens[greedy], found = _winners(ones, values_all, ids_all)
        healthy[greedy] &= found
        all_sums = SliceSums(side_by_side(peak), side_by_side(mass))
        keys = row_keys(batch.seed[chance], batch.position[chance]).to(device).unsqueeze(1)
        filters = Filters.of(batch.top_p[chance], batch.min_p[chance], batch.top_k[chance], keys)
        rows = _Scaled(scaled, shares, keys)
        offer = Offer.merge(offers[0], offers[1], width, self._local_vocab)
        tokens[by_chance] = self._draw_by_chance(rows, all_sums, filters, filtered, offer)
        healthy[by_chance] &= all_sums.peak.amax(-1).isfinite()
        return tokens, healthy

    def _offer(self, scaled: Tensor, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """This rank's best `width` logits and ids [n, W] (as float32)."""
        width = min(width, self._local_vocab)
        if not len(rows):
            empty = scaled.new_empty((0, width))
            return empty, empty
        values, at = top(scaled if len(rows) == len(scaled) else scaled[rows], width)
        return values, (at + self._first_id).float()

    def _draw_by_chance(
        self, rows: _Scaled, sums: SliceSums, filters: Filters, filtered: Bools, offer: Offer
    ) -> Tensor:
        device = rows.logits.device
        tokens = torch.empty(len(rows.logits), dtype=torch.int64, device=device)
        undecided = ~filtered
        if filtered.any():
            index = _index(filtered, device)
            lse = sums.logsumexp()
            drawn, covered = draw_offered(offer, lse[index], filters.rows(index), OFFERED)
            tokens[index] = drawn
            wanting = np.flatnonzero(filtered)[~covered.cpu().numpy()]
            limited = (filters.top_k[:, 0] < MAX_VOCAB).cpu().numpy()[wanting]
            self._draw_wider(rows, lse, filters, wanting[limited], tokens)
            undecided[wanting[~limited]] = True
        if undecided.any():
            index = _index(undecided, device)
            tokens[index] = self._draw_open(rows, sums, filters, index)
        return tokens

    def _draw_wider(
        self, rows: _Scaled, lse: Tensor, filters: Filters, wanting: Ints, tokens: Tensor
    ) -> None:
        """Rows whose top_k reaches beyond the offer, by equal values: ask for more, all ranks."""
        width = OFFERED
        index = torch.from_numpy(wanting).to(tokens.device)
        while len(index):
            width = min(width * 16, self._local_vocab * self._group.size)
            offers = exchange(self._group, self._offer(rows.logits, index, width))
            offer = Offer.merge(offers[0], offers[1], width, self._local_vocab)
            tokens[index], covered = draw_offered(offer, lse[index], filters.rows(index), width)
            index = index[~covered]

    def _draw_open(self, rows: _Scaled, sums: SliceSums, filters: Filters, index: Tensor) -> Tensor:
        peak, weights = sums.weights()
        sliced = rows.logits.view_as(rows.shares)
        lowest = torch.nextafter(peak + filters.min_p_log, peak.new_tensor(-math.inf))
        everything = OpenRows(sliced, rows.shares, weights, rows.keys, filters.top_p, lowest)
        if len(index) < len(sliced):
            everything = everything.rows(index)
        limited = bool((everything.top_p < math.inf).any())
        narrowed = bool((everything.above > -math.inf).any())
        return self._open.draw(everything, limited=limited, narrowed=narrowed)

    def _logprobs(
        self, logits: Tensor, tokens: Tensor, counts: Ints | None
    ) -> list[TokenLogprobs | None] | None:
        if counts is None or (counts < 0).all():
            return None
        asked = np.flatnonzero(counts >= 0)
        index = torch.from_numpy(asked).to(logits.device)
        told = token_logprobs(
            logits[index], tokens[index], counts[asked], self._slices, self._group
        )
        named: list[TokenLogprobs | None] = [None] * len(logits)
        for row, one in zip(asked.tolist(), told, strict=True):
            named[row] = one
        return named


def _winners(finite: Tensor, values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """From [R, n] each: the id with the highest value, of equals the lowest, and its health."""
    highest, rank = values.max(0)
    tokens = ids.gather(0, rank.unsqueeze(0))[0].long()
    return tokens, (finite.amin(0) > 0) & highest.isfinite()


def _index(selected: Bools, device: torch.device) -> Tensor:
    return torch.from_numpy(np.flatnonzero(selected)).to(device)


def _power_of_two_above(value: int) -> int:
    """Smallest power of two greater than `value`."""
    return 1 << value.bit_length()
