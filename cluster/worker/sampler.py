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
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.device import Arriving, sent
from cluster.kernels.kernels import Kernels
from cluster.model.tp_group import TPGroup
from cluster.request import TokenLogprobs
from cluster.worker.allowed import Allowed, forbid_others
from cluster.worker.candidates import Filters, Offer, draw_offered
from cluster.worker.device_draw import DeviceDraw, Offers
from cluster.worker.drawn import Draw, Drawn, DrawnLater, DrawnNow
from cluster.worker.exchange import exchange, side_by_side
from cluster.worker.logit_edits import LogitEdits
from cluster.worker.logit_slices import LogitSlices, Shares, SliceSums, best
from cluster.worker.logprobs import token_logprobs
from cluster.worker.noise import MAX_VOCAB, row_keys
from cluster.worker.open_draw import OpenDraw, OpenRows

OFFERED = 64
"""First W; larger when a row's top_k is."""
WARY_STEPS = 32
"""Draws of the device that are waited for after one that did not suffice."""
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
    forced_ids: Ints | None = None
    """Ids that are taken instead of a drawn one; -1: the drawn one. None: all -1."""
    edits: LogitEdits | None = None
    """What requests change in logits before temperature; None: nothing."""


class _Mixed(NamedTuple):
    """This rank's part of a step in which some rows are drawn by chance."""

    offers: Offers
    chance: Bools
    """[S] which rows are"""
    logits: Tensor
    """[n, V / R] of those, after temperature"""
    local: Shares
    filters: Filters
    filtered: Bools
    """[n] whether any filter limits the row"""
    width: int
    """of the offer"""


class Sampler:
    """Draws one token per row from vocabulary-parallel logits."""

    def __init__(
        self,
        group: TPGroup,
        vocab_size: int,
        num_real_tokens: int,
        kernels: Kernels | None = None,
        fetch: Callable[[Tensor], Arriving] = Arriving,
    ) -> None:
        """`num_real_tokens`: ids at or above it exist in the model only and are never drawn.

        `kernels`: whose maximum serves steps in which every row is greedy, and whose draw, if it
        has one, those in which all others have filters; `fetch`: brings tensors to the host.
        """
        if vocab_size > MAX_VOCAB:
            raise ValueError(f"a vocabulary of {vocab_size} is larger than {MAX_VOCAB}")
        self.fetch = fetch
        self._group = group
        self._kernels = kernels
        self.local_vocab = vocab_size // group.size
        """Ids of this rank."""
        self._first_id = group.rank * self.local_vocab
        self._real_local = min(max(num_real_tokens - self._first_id, 0), self.local_vocab)
        self._slices = LogitSlices(vocab_size, group.size)
        self._open = OpenDraw(group, self._first_id, self._slices.width)
        draw = None if kernels is None else kernels.draw_offered
        self._on_device: DeviceDraw | None = None
        if draw is not None:
            self._on_device = DeviceDraw(group, self.local_vocab, draw, fetch)
        self._wary = 0
        self._scratch = torch.empty(0)

    def sample(self, logits: Tensor, batch: SamplingBatch, allowed: Allowed | None = None) -> Drawn:
        """Draw, and wait for what was drawn; arguments as of `begin`."""
        return self.begin(logits, batch, allowed).result()

    def begin(self, logits: Tensor, batch: SamplingBatch, allowed: Allowed | None = None) -> Draw:
        """Draw; where the device can, without waiting for it.

        Args:
            logits: [S, V / R], this rank's slice; overwritten.
            allowed: which ids may be drawn at all; None: all.
        """
        chance = batch.temperature >= GREEDY_BELOW
        told = batch.num_logprobs is not None and (batch.num_logprobs >= 0).any()
        changed = len(batch.banned_ids) or allowed is not None or batch.edits is not None
        plain = not (chance.any() or told or changed)
        if plain and self._kernels is not None and self._real_local:
            # nothing but maxima is asked for: one pass over the logits as they are
            values, at, healthy = self._kernels.row_argmax(logits, self._real_local)
            return self._draw_best(torch.where(healthy, 0.0, math.nan), values, at, batch)
        logits = logits.float()
        finite = logits.sum(-1)
        self._ban(logits, batch)
        overwritten = bool(changed or chance.any())
        thought = self._thought(logits, batch, overwritten) if told else None
        if batch.edits is not None:
            batch.edits.apply(logits, self._first_id)
        if allowed is not None:
            forbid_others(logits, allowed, self._first_id)
        if chance.any():
            draw = self._draw_mixed(self._mixed(logits, finite, batch, chance), batch)
        else:
            draw = self._draw_best(finite, *best(logits), batch)
        if thought is None:
            return draw
        drawn = draw.result()
        named = self._logprobs(thought, drawn.token_ids, batch.num_logprobs)
        return DrawnNow(drawn._replace(logprobs=named))

    def judge(self, logits: Tensor, token_ids: Ints, counts: Ints) -> list[TokenLogprobs]:
        """What the model thought of tokens that were given, not drawn.

        Args:
            logits: [n, V / R], this rank's slice; overwritten.
            token_ids: [n].
            counts: [n] how many of the likeliest ids to name.
        """
        logits = logits.float()
        self._ban_unreal(logits)
        return token_logprobs(logits, token_ids, counts, self._slices, self._group)

    def _ban_unreal(self, logits: Tensor) -> None:
        """-inf for ids without a token."""
        if self._real_local < self.local_vocab:
            logits[:, self._real_local :] = -math.inf

    def _ban(self, logits: Tensor, batch: SamplingBatch) -> None:
        """-inf for ids without a token, and for the ids that rows must not draw now."""
        self._ban_unreal(logits)
        if len(batch.banned_ids):
            local = batch.banned_ids - self._first_id
            here = (local >= 0) & (local < self.local_vocab)
            rows = sent(batch.banned_rows[here], logits.device)
            columns = sent(local[here], logits.device)
            logits[rows, columns] = -math.inf

    def _draw_best(self, sums: Tensor, values: Tensor, at: Tensor, batch: SamplingBatch) -> Draw:
        """Of greedy rows, [S] each: sums, highest values and where they are."""
        ids = (at + self._first_id).float()
        if self._on_device is not None:
            return DrawnLater(self._on_device.best(sums, values, ids, batch.forced_ids))
        tokens, healthy = _winners(*exchange(self._group, [sums, values, ids]))
        return DrawnNow(Drawn(_forced(tokens, batch.forced_ids), healthy, None))

    def _mixed(self, logits: Tensor, sums: Tensor, batch: SamplingBatch, chance: Bools) -> _Mixed:
        values, at = best(_rows(logits, ~chance))
        scaled = _rows(logits, chance)
        scaled.div_(sent(batch.temperature[chance], logits.device).unsqueeze(1))
        local = self._slices.shares(scaled, self._memory(scaled))
        filtered = ((batch.top_p < 1) | (batch.top_k > 0) | (batch.min_p > 0))[chance]
        width = max(OFFERED, _power_of_two_above(int(batch.top_k[chance].max(initial=0))))
        few = self._offer(_rows(scaled, filtered), _rows(local.maxima, filtered), width)
        filters = Filters.of(
            batch.top_p[chance],
            batch.min_p[chance],
            batch.top_k[chance],
            row_keys(batch.seed[chance], batch.position[chance]),
        )
        greedy_ids = (at + self._first_id).float()
        offers = Offers(sums, values, greedy_ids, local.peak, local.mass, *few)
        return _Mixed(offers, chance, scaled, local, filters, filtered, width)

    def _draw_mixed(self, mixed: _Mixed, batch: SamplingBatch) -> Draw:
        """By the device if it can, else by the host; once it could not, the device's word is waited
        for during some steps, as whoever builds on it builds in vain."""
        forced = batch.forced_ids
        if self._on_device is None or not mixed.filtered.all() or mixed.width != OFFERED:
            return DrawnNow(self._on_host(mixed, forced))

        def once_more() -> Drawn:
            self._wary = WARY_STEPS
            return self._on_host(mixed, forced)

        told = self._on_device.mixed(mixed.offers, mixed.filters, mixed.chance, forced)
        draw = DrawnLater(told, once_more)
        if not self._wary:
            return draw
        self._wary -= 1
        return DrawnNow(draw.result())

    def _on_host(self, mixed: _Mixed, forced: Ints | None) -> Drawn:
        """Greedy rows and rows by chance, with one exchange for what nearly all rows need."""
        sums, values, ids, peak, mass, *offers = exchange(self._group, mixed.offers)
        chance = mixed.chance
        healthy: Bools = np.isfinite(sums).min(0)
        tokens = np.empty(len(chance), np.int64)
        if not chance.all():
            tokens[~chance], healthy[~chance] = _winners(sums[:, ~chance], values, ids)
        everyones = SliceSums(side_by_side(peak), side_by_side(mass))
        offer = Offer.merge(offers[0], offers[1], mixed.width, self.local_vocab)
        tokens[chance] = self._draw_by_chance(mixed, everyones, offer)
        healthy[chance] &= np.isfinite(everyones.peak.max(-1))
        return Drawn(_forced(tokens, forced), healthy, None)

    def _memory(self, logits: Tensor) -> Tensor:
        """As much memory as the logits take, reused by the next step."""
        if self._scratch.numel() < logits.numel() or self._scratch.device != logits.device:
            self._scratch = torch.empty(logits.numel(), device=logits.device)
        return self._scratch[: logits.numel()]

    def _offer(self, scaled: Tensor, maxima: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """This rank's best `width` logits and ids [n, W] (as float32)."""
        width = min(width, self.local_vocab)
        if not len(scaled):
            empty = scaled.new_empty((0, width))
            return empty, empty
        values, at = self._slices.top(scaled, maxima, width)
        return values, (at + self._first_id).float()

    def _draw_by_chance(self, rows: _Mixed, sums: SliceSums, offer: Offer) -> Ints:
        tokens = np.empty(len(rows.logits), np.int64)
        undecided = ~rows.filtered
        if rows.filtered.any():
            index = np.flatnonzero(rows.filtered)
            lse = sums.logsumexp()
            tokens[index], covered = draw_offered(
                offer, lse[index], rows.filters.rows(index), OFFERED
            )
            wanting = index[~covered]
            limited = rows.filters.top_k[wanting, 0] < MAX_VOCAB
            self._draw_wider(rows, lse, wanting[limited], tokens)
            undecided[wanting[~limited]] = True
        if undecided.any():
            tokens[undecided] = self._draw_open(rows, sums, np.flatnonzero(undecided))
        return tokens

    def _draw_wider(self, rows: _Mixed, lse: Floats, wanting: Ints, tokens: Ints) -> None:
        """Rows whose top_k reaches beyond the offer, by equal values: ask for more, all ranks."""
        width = OFFERED
        while len(wanting):
            width = min(width * 16, self.local_vocab * self._group.size)
            which = sent(wanting, rows.logits.device)
            few = self._offer(rows.logits[which], rows.local.maxima[which], width)
            values, ids = exchange(self._group, few)
            offer = Offer.merge(values, ids, width, self.local_vocab)
            drawn = draw_offered(offer, lse[wanting], rows.filters.rows(wanting), width)
            tokens[wanting], covered = drawn
            wanting = wanting[~covered]

    def _draw_open(self, rows: _Mixed, sums: SliceSums, index: Ints) -> Ints:
        peak, weights = sums.weights()
        with np.errstate(invalid="ignore"):
            lowest = np.nextafter(peak + rows.filters.min_p_log, np.float32(-math.inf))
        return self._open.draw(
            OpenRows(
                rows.logits.view_as(rows.local.shares),
                rows.local.shares,
                index,
                weights[index],
                rows.filters.keys[index],
                rows.filters.top_p[index],
                lowest[index],
            )
        )

    def _thought(self, logits: Tensor, batch: SamplingBatch, overwritten: bool) -> Tensor:
        """What the model itself thought, for the positions that want to be told."""
        assert batch.num_logprobs is not None
        thought = _rows(logits, batch.num_logprobs >= 0)
        return thought.clone() if overwritten and thought is logits else thought

    def _logprobs(
        self, thought: Tensor | None, tokens: Ints, counts: Ints | None
    ) -> list[TokenLogprobs | None] | None:
        if thought is None or counts is None:
            return None
        asked = counts >= 0
        told = token_logprobs(thought, tokens[asked], counts[asked], self._slices, self._group)
        named: list[TokenLogprobs | None] = [None] * len(tokens)
        for row, one in zip(np.flatnonzero(asked).tolist(), told, strict=True):
            named[row] = one
        return named


def _forced(drawn: Ints, forced: Ints | None) -> Ints:
    return drawn if forced is None else np.where(forced >= 0, forced, drawn)


def _winners(sums: Floats, values: Floats, ids: Floats) -> tuple[Ints, Bools]:
    """From [R, n] each: the id with the highest value, of equals the lowest, and its health.

    A row's sum is finite if and only if all of the row was.
    """
    healthy: Bools = np.isfinite(sums).min(0) & np.isfinite(values.max(0))
    winner = values.argmax(0)
    return ids[winner, np.arange(ids.shape[1])].astype(np.int64), healthy


def _rows(logits: Tensor, selected: Bools) -> Tensor:
    if selected.all():
        return logits
    return logits[sent(np.flatnonzero(selected), logits.device)]


def _power_of_two_above(value: int) -> int:
    """Smallest power of two greater than `value`."""
    return 1 << value.bit_length()
