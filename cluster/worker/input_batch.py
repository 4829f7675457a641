"""InputBatch: the persistent batch, mirrored from the frames, and each step's inputs made from it.

Owns the rows: known tokens, blocks and sampling parameters of every request in flight, in host
arrays, so that a step is prepared by a fixed number of array operations whatever its size. Knows
no model. Refuses frames that contradict what it has seen: a rank that lost step must not guess.

    token_ids    [rows, max_model_len]   num_tokens[row] of them known, then the drafts
    block_table  [rows, max_blocks]      num_blocks[row] of them given, the rest 0 (the dummy)

A step: `apply` the frame, `prepare` its inputs, compute, draw by `sampling`, then `record` what was
drawn. Where the next step begins before that is known here, the rows `expect` a token each, which
that step takes on the device, and `fill` it in when it came.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.attention.backend import AttentionMetadata
from cluster.batch import AppendedRow, ScheduledRow, SchedulerOutput, StartedRow
from cluster.device import sent
from cluster.worker.row_edits import RowEdits
from cluster.worker.row_prompts import NOTHING, Judged, RowPrompts
from cluster.worker.row_thoughts import RowThoughts
from cluster.worker.sampler import SamplingBatch

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.int32]


class FrameError(RuntimeError):
    """A frame contradicts the rows this rank has mirrored."""


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """One step on the device, and what the host must remember of it."""

    token_ids: Tensor
    """int64 [T]; -1 where a token is awaited"""
    awaited: Tensor | None
    """int64 [T]: which of the tokens drawn last it is, -1: none; None: none is awaited."""
    rows: Ints
    """[B] in the order of `metadata`."""
    metadata: AttentionMetadata
    sample_index: Tensor
    """int64 [S]: where within T something is drawn: at each sampling row's last known token, then
    at each of its drafts, row after row in the frame's order."""
    sample_rows: list[int]
    drafts: list[list[int]]
    """Per sampling row, so that S = sum(1 + len(draft) for draft in drafts)."""
    chunk_index: Tensor
    """int64 [C]: the last token of every row that does not sample ..."""
    chunk_rows: list[int]
    """... and those rows."""
    judged_index: Tensor
    """int64 [J]: the tokens behind which one of the prompt's follows that is judged ..."""
    judged: Judged | None
    """... and which ones follow; None: none."""


class InputBatch:
    """Every row's state."""

    def __init__(
        self,
        num_rows: int,
        max_model_len: int,
        block_size: int,
        eos_token_ids: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self._device = device
        self._block_size = block_size
        self._eos = list(eos_token_ids)
        self._token_ids = np.zeros((num_rows, max_model_len), np.int32)
        self._block_table = np.zeros((num_rows, -(-max_model_len // block_size)), np.int32)
        self._num_tokens = np.zeros(num_rows, np.int64)
        self._awaited = np.full(num_rows, -1, np.int64)
        self._expecting = False
        self._num_blocks = np.zeros(num_rows, np.int64)
        self._num_prompt = np.zeros(num_rows, np.int64)
        self._min_tokens = np.zeros(num_rows, np.int64)
        self._temperature = np.zeros(num_rows, np.float32)
        self._top_p = np.ones(num_rows, np.float32)
        self._min_p = np.zeros(num_rows, np.float32)
        self._top_k = np.zeros(num_rows, np.int64)
        self._seed = np.zeros(num_rows, np.int64)
        self._num_logprobs = np.full(num_rows, -1, np.int64)
        self._stop_ids = np.full((num_rows, max(1, len(self._eos))), -1, np.int64)
        self._thoughts = RowThoughts()
        self._edits = RowEdits()
        self._prompts = RowPrompts()

    def apply(self, frame: SchedulerOutput) -> None:
        """Mirror what the frame says about rows: released, then started, then appended.

        Raises:
            FrameError: a row is unknown or already taken, or overflows.
        """
        for row in frame.released:
            self._check(0 <= row < len(self._num_tokens) and self._num_tokens[row], row, "is free")
            self._block_table[row, : self._num_blocks[row]] = 0
            self._num_tokens[row] = self._num_blocks[row] = 0
            self._awaited[row] = -1
            self._edits.release(row)
            self._prompts.release(row)
        for started in frame.started:
            self._start(started)
        if frame.appended:
            self._append(frame.appended)

    def tokens(self, row: int) -> Tokens:
        """The row's known tokens; a view that the next `record` does not lengthen."""
        return self._token_ids[row, : self._num_tokens[row]]

    def record(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
        """Append what this step drew: per row at least one token.

        A row whose numbers went wrong draws nothing ([]), but may be part of a step that is
        planned already: it gets a token 0, which nobody will see.
        """
        if not rows:
            return
        index = np.array(rows)
        counts = np.array([len(tokens) or 1 for tokens in token_ids])
        known = self._num_tokens[index]
        self._check((known + counts <= self._token_ids.shape[1]).all(), index, "is too long")
        drawn = [token for tokens in token_ids for token in tokens or (0,)]
        self._token_ids[np.repeat(index, counts), _spans(known, counts)] = drawn
        self._num_tokens[index] = known + counts
        self._thoughts.record(rows, token_ids)
        self._edits.record(rows, token_ids)

    def expect(self, rows: Sequence[int]) -> None:
        """Each of these rows, in the order in which they draw, has a token more: not known yet."""
        index = np.array(rows, np.int64)
        self._check(not self._expecting, index, "expects a token already")
        known = self._num_tokens[index]
        self._check((known < self._token_ids.shape[1]).all(), index, "is too long")
        self._token_ids[index, known] = -1
        self._num_tokens[index] = known + 1
        self._awaited[index] = np.arange(len(index))
        self._expecting = True

    def fill(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> list[int]:
        """What the expecting rows drew, as `record`; returns which of them are still here."""
        index = np.array(rows, np.int64)
        still = np.flatnonzero(self._awaited[index] == np.arange(len(index))).tolist()
        for place in still:
            row = rows[place]
            self._token_ids[row, self._num_tokens[row] - 1] = next(iter(token_ids[place]), 0)
        self._awaited[index] = -1
        self._expecting = False
        here, drawn = [rows[place] for place in still], [token_ids[place] for place in still]
        self._thoughts.record(here, drawn)
        self._edits.record(here, drawn)
        return still

    def _start(self, started: StartedRow) -> None:
        row, tokens, blocks = started.row, started.token_ids, started.block_ids
        self._check(0 <= row < len(self._num_tokens), row, "does not exist")
        self._check(not self._num_tokens[row], row, "is taken")
        self._check(0 < len(tokens) <= self._token_ids.shape[1], row, "has no or too many tokens")
        self._check(len(blocks) <= self._block_table.shape[1], row, "has too many blocks")
        self._token_ids[row, : len(tokens)] = tokens
        self._block_table[row, : len(blocks)] = blocks
        self._num_tokens[row] = len(tokens)
        self._num_blocks[row] = len(blocks)
        self._thoughts.start(started)
        self._edits.start(started)
        self._prompts.start(started)
        params = started.params
        self._num_prompt[row] = started.num_prompt_tokens
        self._min_tokens[row] = params.min_tokens
        self._temperature[row] = params.temperature
        self._top_p[row] = params.top_p
        self._min_p[row] = params.min_p
        self._top_k[row] = params.top_k
        self._seed[row] = params.seed
        self._num_logprobs[row] = -1 if params.logprobs is None else params.logprobs
        stop = [*self._eos, *params.stop_token_ids] if params.min_tokens else []
        if len(stop) > self._stop_ids.shape[1]:
            wider = len(stop) - self._stop_ids.shape[1]
            self._stop_ids = np.pad(self._stop_ids, ((0, 0), (0, wider)), constant_values=-1)
        self._stop_ids[row] = -1
        self._stop_ids[row, : len(stop)] = stop

    def _append(self, appended: list[AppendedRow]) -> None:
        rows = np.array([a.row for a in appended])
        self._check((rows >= 0).all() and (rows < len(self._num_tokens)).all(), rows, "unknown")
        self._check(self._num_tokens[rows].all(), rows, "was never started")
        counts = np.array([len(a.block_ids) for a in appended])
        blocks = [block for a in appended for block in a.block_ids]
        starts = self._num_blocks[rows]
        self._check((starts + counts <= self._block_table.shape[1]).all(), rows, "overflows")
        self._block_table[np.repeat(rows, counts), _spans(starts, counts)] = blocks
        self._num_blocks[rows] = starts + counts

    def prepare(self, scheduled: list[ScheduledRow]) -> StepInputs:
        """The inputs of a step; `scheduled` must not be empty.

        Raises:
            FrameError: a row has fewer known tokens or blocks than the step needs.
        """
        shares = _Shares.of(scheduled)
        if shares.num_drafts.any():
            self._place_drafts(shares, [s.draft_token_ids for s in scheduled if s.draft_token_ids])
        self._check_step(shares)
        # rows with one query first, and the longest first: neighbours then pad little
        order = np.lexsort((-shares.ends, shares.counts > 1))
        rows, starts, counts = shares.rows[order], shares.starts[order], shares.counts[order]

        positions = _spans(starts, counts)
        token_rows = np.repeat(rows, counts)
        pages, offsets = np.divmod(positions, self._block_size)
        slots = self._block_table[token_rows, pages].astype(np.int64)
        slots = slots * self._block_size + offsets
        borders = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(counts, out=borders[1:])
        seq_lens = starts + counts
        max_k = int(seq_lens.max())
        num_pages = -(-max_k // self._block_size)

        last = np.empty(len(rows), np.int64)
        last[order] = borders[1:] - 1
        samples = shares.samples
        sample_rows = shares.rows[samples].tolist()
        drafts = [s.draft_token_ids for s in scheduled if s.samples]
        judged = self._prompts.judged(scheduled, last + 1 - shares.counts, self._token_ids)
        num_drafts = shares.num_drafts[samples]
        return StepInputs(
            token_ids=self._put(self._token_ids[token_rows, positions].astype(np.int64)),
            awaited=self._awaited_at(token_rows, positions),
            rows=rows,
            metadata=AttentionMetadata(
                cu_seqlens_q=self._put(borders),
                seq_lens_k=self._put(seq_lens.astype(np.int32)),
                block_table=self._put(self._block_table[rows, :num_pages]),
                positions=self._put(positions),
                slot_mapping=self._put(slots),
                max_q=int(counts.max()),
                max_k=max_k,
                num_decode=int((counts == 1).sum()),
            ),
            sample_index=self._put(_spans(last[samples] - num_drafts, num_drafts + 1)),
            sample_rows=sample_rows,
            drafts=drafts,
            chunk_index=self._put(last[~samples]),
            chunk_rows=shares.rows[~samples].tolist(),
            judged_index=self._put(NOTHING if judged is None else judged.behind),
            judged=judged,
        )

    def _awaited_at(self, token_rows: Ints, positions: Ints) -> Tensor | None:
        if not self._expecting:
            return None
        last = positions == self._num_tokens[token_rows] - 1
        return self._put(np.where(last, self._awaited[token_rows], -1))

    def _place_drafts(self, shares: "_Shares", drafts: list[list[int]]) -> None:
        """Behind the known tokens, where the step reads them and `record` overwrites them."""
        rows, counts = shares.rows[shares.num_drafts > 0], shares.num_drafts[shares.num_drafts > 0]
        self._check((rows >= 0).all() and (rows < len(self._num_tokens)).all(), rows, "unknown")
        known = self._num_tokens[rows]
        self._check((known + counts <= self._token_ids.shape[1]).all(), rows, "is too long")
        tokens = [token for draft in drafts for token in draft]
        self._token_ids[np.repeat(rows, counts), _spans(known, counts)] = tokens

    def _check_step(self, shares: "_Shares") -> None:
        rows, starts, counts, ends = shares.rows, shares.starts, shares.counts, shares.ends
        self._check((rows >= 0).all() and (rows < len(self._num_tokens)).all(), rows, "unknown")
        known = self._num_tokens[rows] + shares.num_drafts
        room = self._num_blocks[rows] * self._block_size
        self._check((counts > shares.num_drafts).all(), rows, "computes nothing")
        self._check((starts >= 0).all(), rows, "starts nowhere")
        self._check((ends <= known).all(), rows, "computes tokens nobody knows")
        self._check((ends <= room).all(), rows, "has too few blocks")
        samples = shares.samples | (shares.num_drafts > 0)
        self._check((ends == known)[samples].all(), rows, "samples before its last known token")

    def sampling(self, inputs: StepInputs) -> SamplingBatch:
        """One entry per sampling position of the step last prepared: the settings of its row.

        Every token before those to be drawn must be known.
        """
        listed, drafts = inputs.sample_rows, inputs.drafts
        sample_rows = np.array(listed, np.int64)
        forced = self._thoughts.forced(listed, drafts)
        counts = np.array([1 + len(draft) for draft in drafts], np.int64)
        position = _spans(self._num_tokens[sample_rows], counts)
        rows = np.repeat(sample_rows, counts)
        early = position - self._num_prompt[rows] < self._min_tokens[rows]
        waiting = np.flatnonzero(early if forced is None else early & (forced < 0))
        banned = self._stop_ids[rows[waiting]]
        index, column = np.nonzero(banned >= 0)
        num_logprobs = self._num_logprobs[rows]
        return SamplingBatch(
            temperature=self._temperature[rows],
            top_p=self._top_p[rows],
            min_p=self._min_p[rows],
            top_k=self._top_k[rows],
            seed=self._seed[rows],
            position=position,
            banned_rows=waiting[index],
            banned_ids=banned[index, column],
            num_logprobs=num_logprobs if (num_logprobs >= 0).any() else None,
            forced_ids=forced,
            edits=self._edits.edits(listed, drafts),
        )

    def _put(self, array: npt.NDArray[np.int32] | Ints) -> Tensor:
        return sent(array, self._device)

    @staticmethod
    def _check(holds: object, row: object, what: str) -> None:
        if not holds:
            raise FrameError(f"frame and batch disagree: row {row} {what}")


class _Shares(NamedTuple):
    """What a frame schedules, as arrays [B] in the frame's order."""

    rows: Ints
    starts: Ints
    counts: Ints
    ends: Ints
    num_drafts: Ints
    samples: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, scheduled: list[ScheduledRow]) -> "_Shares":
        told = [
            (s.row, s.num_computed, s.num_tokens, s.samples, len(s.draft_token_ids))
            for s in scheduled
        ]
        rows, starts, counts, samples, num_drafts = np.array(told, np.int64).T.copy()
        return cls(rows, starts, counts, starts + counts, num_drafts, samples.astype(np.bool_))


def _spans(starts: Ints, counts: Ints) -> Ints:
    """[a, b], [2, 3] -> a, a+1, b, b+1, b+2."""
    ends = np.cumsum(counts)
    offsets = np.repeat(starts - (ends - counts), counts)
    spans: Ints = offsets + np.arange(len(offsets))
    return spans
