import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.batch import AppendedRow, ScheduledRow, SchedulerOutput, StartedRow
from cluster.request import SamplingParams
from cluster.worker.input_batch import FrameError, InputBatch

BLOCK = 4


def make(rows: int = 6, max_model_len: int = 40, eos: tuple[int, ...] = (9,)) -> InputBatch:
    return InputBatch(rows, max_model_len, BLOCK, eos, torch.device("cpu"))


def frame(
    started: list[StartedRow] | None = None,
    appended: list[AppendedRow] | None = None,
    released: list[int] | None = None,
) -> SchedulerOutput:
    return SchedulerOutput(1, released or [], started or [], appended or [], [])


def row(number: int, tokens: list[int], blocks: list[int], **params: float) -> StartedRow:
    return StartedRow(number, tokens, len(tokens), blocks, SamplingParams(**params))  # type: ignore[arg-type]


def test_a_step_lists_decodes_first_and_the_longest_of_them_first() -> None:
    batch = make()
    batch.apply(
        frame([row(0, [1, 2, 3, 4, 5], [7, 3]), row(1, [11, 12], [5]), row(4, [20] * 9, [1, 2, 6])])
    )
    inputs = batch.prepare(
        [ScheduledRow(0, 1, 4, True), ScheduledRow(1, 1, 1, True), ScheduledRow(4, 8, 1, True)]
    )
    meta = inputs.metadata
    assert inputs.token_ids.tolist() == [20, 12, 2, 3, 4, 5]
    assert inputs.metadata.positions.tolist() == [8, 1, 1, 2, 3, 4]
    assert meta.slot_mapping.tolist() == [24, 21, 29, 30, 31, 12]
    assert meta.cu_seqlens_q.tolist() == [0, 1, 2, 6]
    assert meta.seq_lens_k.tolist() == [9, 2, 5]
    assert meta.block_table.tolist() == [[1, 2, 6], [5, 0, 0], [7, 3, 0]]
    assert (meta.max_q, meta.max_k, meta.num_decode) == (4, 9, 2)
    assert meta.block_table.dtype == meta.seq_lens_k.dtype == torch.int32
    assert inputs.sample_rows == [0, 1, 4]
    assert inputs.sample_index.tolist() == [5, 1, 0]
    assert batch.sampling(inputs).position.tolist() == [5, 2, 9]


def test_rows_that_do_not_sample_are_left_out() -> None:
    batch = make()
    batch.apply(frame([row(2, [1, 2, 3], [4]), row(3, [5, 6], [5])]))
    inputs = batch.prepare([ScheduledRow(2, 0, 2, False), ScheduledRow(3, 0, 2, True)])
    assert inputs.sample_rows == [3]
    assert inputs.sample_index.tolist() == [3]


def test_drafts_are_computed_behind_the_last_known_token_and_drawn_from() -> None:
    batch = make()
    batch.apply(frame([row(0, [1, 2, 3], [7, 8]), row(1, [11], [5]), row(2, [20] * 6, [1, 2])]))
    inputs = batch.prepare(
        [
            ScheduledRow(0, 2, 3, True, [4, 5]),
            ScheduledRow(1, 0, 1, True),
            ScheduledRow(2, 0, 4, False),
        ]
    )
    assert inputs.token_ids.tolist() == [11, 3, 4, 5, 20, 20, 20, 20]
    assert inputs.metadata.positions.tolist() == [0, 2, 3, 4, 0, 1, 2, 3]
    assert inputs.metadata.seq_lens_k.tolist() == [1, 5, 4]
    assert inputs.sample_index.tolist() == [1, 2, 3, 0]
    assert batch.sampling(inputs).position.tolist() == [3, 4, 5, 1]
    assert (inputs.sample_rows, inputs.drafts) == ([0, 1], [[4, 5], []])
    assert (inputs.chunk_rows, inputs.chunk_index.tolist()) == ([2], [7])
    assert batch.tokens(0).tolist() == [1, 2, 3]


def test_what_was_drawn_replaces_the_drafts() -> None:
    batch = make()
    batch.apply(frame([row(0, [1, 2, 3], [7, 8]), row(1, [11], [5]), row(2, [20], [1])]))
    batch.prepare([ScheduledRow(0, 2, 3, True, [4, 5])])
    batch.record([0, 1, 2], [[4, 9], [12], []])
    assert [batch.tokens(number).tolist() for number in range(3)] == [
        [1, 2, 3, 4, 9],
        [11, 12],
        [20, 0],  # its numbers went wrong, but it may be part of a step that is planned
    ]
    assert batch.prepare([ScheduledRow(0, 4, 1, True)]).token_ids.tolist() == [9]
    with pytest.raises(FrameError, match="too long"):
        batch.record([0], [[1] * 36])


def test_a_token_that_is_being_drawn_is_awaited_by_the_next_step_and_filled_in_later() -> None:
    batch = make()
    batch.apply(frame([row(0, [1, 2, 3], [7]), row(1, [11], [5]), row(2, [20, 21], [1])]))
    drawing = batch.prepare([ScheduledRow(2, 0, 2, True), ScheduledRow(0, 0, 3, True)])
    assert drawing.awaited is None
    batch.expect(drawing.sample_rows)
    batch.apply(frame([row(2, [30, 31], [2])], released=[2]))
    ahead = batch.prepare(
        [ScheduledRow(0, 3, 1, True), ScheduledRow(1, 0, 1, True), ScheduledRow(2, 0, 2, True)]
    )
    assert ahead.token_ids.tolist() == [-1, 11, 30, 31]
    assert ahead.awaited is not None
    assert ahead.awaited.tolist() == [1, -1, -1, -1]
    assert batch.fill([2, 0], [[8], [9]]) == [1]
    assert [batch.tokens(number).tolist() for number in (0, 2)] == [[1, 2, 3, 9], [30, 31]]
    assert batch.sampling(ahead).position.tolist() == [4, 1, 2]
    batch.expect([0])
    assert batch.fill([0], [[]]) == [0]  # its numbers went wrong
    assert batch.tokens(0).tolist() == [1, 2, 3, 9, 0]


def test_no_row_expects_two_tokens() -> None:
    batch = make()
    batch.apply(frame([row(0, [1, 2, 3], [7])]))
    batch.expect([0])
    with pytest.raises(FrameError, match="already"):
        batch.expect([0])


def test_bans_hold_at_each_draft_until_min_tokens_are_there() -> None:
    batch = make()
    params = SamplingParams(min_tokens=2, stop_token_ids=(6,))
    batch.apply(frame([StartedRow(0, [1, 2], 2, [4, 5], params)]))
    sampling = batch.sampling(batch.prepare([ScheduledRow(0, 1, 4, True, [3, 3, 3])]))
    banned = sorted(zip(sampling.banned_rows.tolist(), sampling.banned_ids.tolist(), strict=True))
    assert banned == [(0, 6), (0, 9), (1, 6), (1, 9)]


def test_logprobs_are_asked_for_per_position_or_not_at_all() -> None:
    batch = make()
    batch.apply(frame([row(0, [1, 2], [4]), row(1, [1, 2], [5], logprobs=3)]))
    shares = [ScheduledRow(0, 1, 1, True), ScheduledRow(1, 1, 2, True, [3])]
    asked = batch.sampling(batch.prepare(shares)).num_logprobs
    assert asked is not None
    assert asked.tolist() == [-1, 3, 3]
    assert batch.sampling(batch.prepare(shares[:1])).num_logprobs is None


def test_a_taken_over_row_shows_nothing_of_its_last_owner() -> None:
    batch = make()
    batch.apply(frame([row(1, list(range(30)), list(range(1, 9)))]))
    batch.apply(frame([row(1, [5], [20])], released=[1]))
    inputs = batch.prepare([ScheduledRow(1, 0, 1, True)])
    assert inputs.token_ids.tolist() == [5]
    assert inputs.metadata.block_table.tolist() == [[20]]
    assert not np.delete(batch._block_table[1], 0).any()


def test_end_and_stop_ids_are_banned_until_min_tokens_are_there() -> None:
    batch = make()
    batch.apply(
        frame(
            [
                StartedRow(
                    0, [1, 2, 3], 1, [4], SamplingParams(min_tokens=3, stop_token_ids=(6, 7))
                ),
                StartedRow(1, [1, 2, 3], 1, [5], SamplingParams(min_tokens=2)),
                StartedRow(2, [1, 2, 3], 3, [6], SamplingParams(min_tokens=1)),
                StartedRow(3, [1, 2, 3], 3, [7], SamplingParams(stop_token_ids=(8,))),
            ]
        )
    )
    sampling = batch.sampling(batch.prepare([ScheduledRow(n, 2, 1, True) for n in range(4)]))
    banned = sorted(zip(sampling.banned_rows.tolist(), sampling.banned_ids.tolist(), strict=True))
    assert banned == [(0, 6), (0, 7), (0, 9), (2, 9)]


def test_sampling_settings_follow_their_row() -> None:
    batch = make()
    settings_ = {"temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "top_k": 7, "seed": -(2**63)}
    batch.apply(frame([row(0, [1], [1]), row(5, [1], [2], **settings_)]))
    sampling = batch.sampling(
        batch.prepare([ScheduledRow(5, 0, 1, True), ScheduledRow(0, 0, 1, True)])
    )
    for name, value in settings_.items():
        assert getattr(sampling, name)[0] == value
    assert sampling.temperature[1] == np.float32(0.6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31))
def test_the_mirror_follows_any_history(number: int) -> None:
    """Against plain lists, over random starts, appends, chunks and releases."""
    choose = random.Random(number)
    batch = make(rows=5, max_model_len=24)
    tokens: dict[int, list[int]] = {}
    blocks: dict[int, list[int]] = {}
    for _ in range(30):
        released = [r for r in tokens if choose.random() < 0.2]
        for r in released:
            del tokens[r], blocks[r]
        appended = []
        for r in list(tokens):
            new = [choose.randrange(99) for _ in range(choose.randrange(3))]
            if len(tokens[r]) + len(new) <= 24:
                need = -(-(len(tokens[r]) + len(new)) // BLOCK) - len(blocks[r])
                given_blocks = [choose.randrange(1, 50) for _ in range(need)]
                tokens[r] += new
                blocks[r] += given_blocks
                batch.record([r][: len(new)], [new][: len(new)])
                appended.append(AppendedRow(r, given_blocks))
        started = []
        for r in {*range(5)} - tokens.keys():
            if choose.random() < 0.5:
                tokens[r] = [choose.randrange(99) for _ in range(choose.randint(1, 24))]
                blocks[r] = [choose.randrange(1, 50) for _ in range(-(-len(tokens[r]) // BLOCK))]
                started.append(row(r, list(tokens[r]), list(blocks[r])))
        batch.apply(frame(started, appended, released))
        scheduled = []
        for r in choose.sample(sorted(tokens), len(tokens)):
            first = choose.randrange(len(tokens[r]))
            count = choose.randint(1, len(tokens[r]) - first)
            scheduled.append(ScheduledRow(r, first, count, first + count == len(tokens[r])))
        if scheduled:
            check_step(batch, scheduled, tokens, blocks)


def check_step(
    batch: InputBatch,
    scheduled: list[ScheduledRow],
    tokens: dict[int, list[int]],
    blocks: dict[int, list[int]],
) -> None:
    inputs = batch.prepare(scheduled)
    ordered = sorted(scheduled, key=lambda s: (s.num_tokens > 1, -(s.num_computed + s.num_tokens)))
    spans = [
        (s.row, p) for s in ordered for p in range(s.num_computed, s.num_computed + s.num_tokens)
    ]
    assert inputs.token_ids.tolist() == [tokens[r][p] for r, p in spans]
    assert inputs.metadata.positions.tolist() == [p for _, p in spans]
    want = [blocks[r][p // BLOCK] * BLOCK + p % BLOCK for r, p in spans]
    assert inputs.metadata.slot_mapping.tolist() == want
    width = inputs.metadata.block_table.shape[1]
    table = [(blocks[s.row] + [0] * width)[:width] for s in ordered]
    assert inputs.metadata.block_table.tolist() == table
    sampling = [s for s in scheduled if s.samples]
    assert inputs.sample_rows == [s.row for s in sampling]
    lasts = [spans[i] for i in inputs.sample_index.tolist()]
    assert lasts == [(s.row, len(tokens[s.row]) - 1) for s in sampling]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (frame(released=[3]), "row 3 is free"),
        (frame(released=[99]), "row 99 is free"),
        (frame([row(0, [1], [1])]), "row 0 is taken"),
        (frame([row(6, [1], [1])]), "row 6 does not exist"),
        (frame([row(1, [], [1])]), "no or too many tokens"),
        (frame([row(1, [1] * 41, [1])]), "no or too many tokens"),
        (frame([row(1, [1], [1] * 11)]), "too many blocks"),
        (frame(appended=[AppendedRow(2, [1])]), "never started"),
        (frame(appended=[AppendedRow(-1, [1])]), "unknown"),
        (frame(appended=[AppendedRow(0, [1] * 10)]), "overflows"),
    ],
)
def test_a_frame_that_contradicts_the_mirror_is_refused(
    bad: SchedulerOutput, complaint: str
) -> None:
    batch = make()
    batch.apply(frame([row(0, [1, 2], [1])]))
    with pytest.raises(FrameError, match=complaint):
        batch.apply(bad)


@pytest.mark.parametrize(
    ("share", "complaint"),
    [
        (ScheduledRow(0, 0, 4, True), "tokens nobody knows"),
        (ScheduledRow(0, 2, 3, True), "too few blocks"),
        (ScheduledRow(0, 0, 2, True), "samples before"),
        (ScheduledRow(0, 0, 0, False), "computes nothing"),
        (ScheduledRow(0, 3, 1, True, [9]), "computes nothing"),
        (ScheduledRow(0, 1, 3, False, [9]), "samples before"),
        (ScheduledRow(0, 2, 39, True, [9] * 38), "too long"),
        (ScheduledRow(9, 0, 1, False), "unknown"),
        (ScheduledRow(3, 0, 1, False), "tokens nobody knows"),
    ],
)
def test_a_share_that_contradicts_the_mirror_is_refused(
    share: ScheduledRow, complaint: str
) -> None:
    batch = make()
    known = [1, 2, 3, 4, 5] if share.num_computed else [1, 2, 3]
    batch.apply(frame([row(0, known, [1])]))
    with pytest.raises(FrameError, match=complaint):
        batch.prepare([share])
