"""Answers are booked for the tokens that stand, also with drafts and with a step planned ahead."""

import pytest

from cluster.batch import ModelRunnerOutput, ScheduledRow, SchedulerOutput
from cluster.engine.booking import GRAMMAR_ERROR, NUMERIC_ERROR, places
from cluster.engine.kv_cache import KVCacheManager
from cluster.engine.scheduler import Scheduler, SchedulerConfig
from cluster.request import EngineRequest, FinishReason, SamplingParams, TokenLogprobs

EOS = 99


def scheduler(*, rows: int = 4, budget: int = 16, num_blocks: int = 33) -> Scheduler:
    config = SchedulerConfig(rows, budget, 64)
    return Scheduler(config, KVCacheManager(num_blocks, 4, True), frozenset({EOS}))


def add(
    core: Scheduler, request_id: str, prompt: list[int], params: SamplingParams | None = None
) -> None:
    core.add(EngineRequest(request_id, prompt, params or SamplingParams(max_tokens=20)))


def answer(frame: SchedulerOutput, token_id: int = 1) -> ModelRunnerOutput:
    rows = [share.row for share in frame.scheduled if share.samples]
    return ModelRunnerOutput(frame.step, rows, [[token_id]] * len(rows))


def step(core: Scheduler) -> None:
    frame = core.schedule()
    core.update(frame, answer(frame))


def shares(frame: SchedulerOutput) -> list[tuple[int, int, int, bool]]:
    return [(s.row, s.num_computed, s.num_tokens, s.samples) for s in frame.scheduled]


# drafts


def propose(frame: SchedulerOutput, drawn: list[int], proposed: list[int]) -> ModelRunnerOutput:
    return ModelRunnerOutput(frame.step, [0], [drawn], draft_token_ids=[proposed])


def test_what_was_proposed_is_computed_behind_the_last_known_token() -> None:
    core = scheduler()
    add(core, "a", [1, 2, 3])
    frame = core.schedule()
    core.update(frame, propose(frame, [7], [8, 9]))
    frame = core.schedule()
    assert frame.scheduled == [ScheduledRow(0, 3, 3, True, [8, 9])]
    (output,) = core.update(frame, propose(frame, [8, 5], []))
    assert (output.new_token_ids, output.num_drafted, output.num_accepted) == ([8, 5], 2, 1)
    assert shares(core.schedule()) == [(0, 5, 1, True)]
    assert (core.stats().num_drafted, core.stats().num_accepted) == (2, 1)


def test_a_stop_within_accepted_drafts_cuts_the_rest() -> None:
    core = scheduler()
    add(core, "a", [1, 2, 3], SamplingParams(max_tokens=9, stop_token_ids=(8,)))
    frame = core.schedule()
    core.update(frame, propose(frame, [7], [6, 8, 9]))
    frame = core.schedule()
    (output,) = core.update(frame, propose(frame, [6, 8, 9, 4], [5]))
    assert (output.new_token_ids, output.finish_reason) == ([6, 8], FinishReason.STOP)
    core.check_integrity()


def test_drafts_never_reach_beyond_max_tokens_or_take_the_budget_of_others() -> None:
    core = scheduler(rows=2, budget=4)
    add(core, "a", [1], SamplingParams(max_tokens=3))
    add(core, "b", [2], SamplingParams(max_tokens=9))
    frame = core.schedule()
    proposals = [[5, 6, 7, 8], [5, 6, 7, 8]]
    core.update(frame, ModelRunnerOutput(frame.step, [0, 1], [[4], [4]], [], proposals))
    frame = core.schedule()
    assert [share.draft_token_ids for share in frame.scheduled] == [[5], [5]]
    assert frame.total_tokens == 4


def test_only_tokens_that_stand_are_published() -> None:
    core = scheduler()
    add(core, "a", [1, 2, 3])
    frame = core.schedule()
    core.update(frame, propose(frame, [7], [8, 9, 9, 9, 9]))
    frame = core.schedule()
    core.update(frame, propose(frame, [6], []))  # all drafts fall, though two blocks were filled
    core.abort("a")
    add(core, "b", [1, 2, 3, 7, 8, 9, 9, 9, 9])
    assert core.schedule().scheduled[0].num_computed == 4


# planning ahead


def test_a_frame_planned_ahead_counts_the_token_that_is_being_drawn() -> None:
    core = scheduler()
    add(core, "a", [1, 2, 3])
    first = core.schedule()
    assert core.can_plan_ahead
    second = core.schedule()
    assert shares(second) == [(0, 3, 1, True)]
    core.update(first, answer(first))
    core.update(second, answer(second))
    assert core.stats().generation_tokens == 2


def test_a_request_that_has_ended_is_ignored_in_the_step_planned_meanwhile() -> None:
    core = scheduler()
    add(core, "a", [1, 2, 3])
    first, second = core.schedule(), core.schedule()
    (output,) = core.update(first, answer(first, EOS))
    assert output.finish_reason is FinishReason.STOP
    add(core, "b", [5])
    third = core.schedule()  # b takes the row while the second step is under way
    assert ([s.row for s in third.started], third.released) == ([0], [0])
    assert core.update(second, answer(second)) == []
    (output,) = core.update(third, answer(third))
    assert output.request_id == "b"
    core.check_integrity()


def test_the_last_token_of_a_request_is_not_planned_twice() -> None:
    core = scheduler()
    add(core, "a", [1, 2, 3], SamplingParams(max_tokens=1))
    core.schedule()
    assert core.schedule().scheduled == []


def test_nothing_is_planned_ahead_of_proposals_or_where_blocks_are_short() -> None:
    core = scheduler(num_blocks=3)
    assert not core.can_plan_ahead
    add(core, "a", [1, 2, 3], SamplingParams(max_tokens=5))
    frame = core.schedule()
    assert core.can_plan_ahead
    core.update(frame, propose(frame, [7], [8]))
    assert not core.can_plan_ahead
    step(core)
    step(core)
    assert not core.can_plan_ahead  # the last block is taken


# answers


def test_logprobs_are_cut_where_the_request_ends() -> None:
    core = scheduler()
    add(core, "a", [1, 2, 3], SamplingParams(max_tokens=2, logprobs=0))
    frame = core.schedule()
    told = [TokenLogprobs(-0.5), TokenLogprobs(-1.0)]
    computed = ModelRunnerOutput(frame.step, [0], [[7]], [], [[8, 9]], [told[:1]])
    (output,) = core.update(frame, computed)
    assert output.logprobs == told[:1]
    frame = core.schedule()
    assert frame.scheduled[0].draft_token_ids == []  # one token is left to draw
    (output,) = core.update(frame, ModelRunnerOutput(frame.step, [0], [[8, 9]], [], [], [told]))
    assert output.logprobs == told[:1]


@pytest.mark.parametrize(
    ("rows", "failed", "step"), [([0], [], 1), ([], [0, 1], 2), ([0, 1, 2], [], 1), ([0], [0], 1)]
)
def test_an_answer_of_another_shape_is_refused(
    rows: list[int], failed: list[int], step: int
) -> None:
    frame = SchedulerOutput(
        1, [], [], [], [ScheduledRow(0, 0, 1, True), ScheduledRow(1, 0, 1, True)]
    )
    computed = ModelRunnerOutput(step, rows, [[1]] * len(rows), failed)
    with pytest.raises(RuntimeError, match="does not match"):
        places(1, frame, computed)


@pytest.mark.parametrize("wrong", ["step", "row missing", "row unknown"])
def test_an_answer_that_does_not_match_its_frame_is_an_error(wrong: str) -> None:
    core = scheduler()
    add(core, "a", [1, 2])
    frame = core.schedule()
    said = answer(frame)
    if wrong == "step":
        said.step += 1
    elif wrong == "row missing":
        said.rows, said.token_ids = [], []
    else:
        said.rows, said.token_ids = [0, 3], [[1], [1]]
    with pytest.raises(RuntimeError, match="does not match"):
        core.update(frame, said)


def test_a_request_whose_grammar_allows_nothing_ends_and_its_blocks_are_disowned() -> None:
    core = scheduler()
    add(core, "a", [1, 2, 3])
    add(core, "b", [1, 2, 4])
    frame = core.schedule()
    computed = ModelRunnerOutput(frame.step, [], [], [0, 1], ungrammatical_rows=[1])
    first, second = core.update(frame, computed)
    assert (first.error, second.error) == (NUMERIC_ERROR, GRAMMAR_ERROR)
    assert first.finish_reason is second.finish_reason is FinishReason.ERROR
    assert not core.stats().running
    core.check_integrity()
