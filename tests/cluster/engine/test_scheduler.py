"""The scheduler's promises, one sentence each, on the paper executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from cluster.batch import ModelRunnerOutput, SchedulerOutput
from cluster.engine.booking import NUMERIC_ERROR
from cluster.engine.kv_cache import KVCacheManager
from cluster.engine.scheduler import Scheduler, SchedulerConfig
from cluster.request import EngineCoreOutput, EngineRequest, FinishReason, SamplingParams

if TYPE_CHECKING:
    from tests.cluster.engine.conftest import World

MakeWorld = Callable[..., "World"]
EOS = 99


def scheduler(
    *,
    rows: int = 4,
    budget: int = 16,
    max_model_len: int = 64,
    chunked: bool = True,
    num_blocks: int = 33,
    block_size: int = 4,
) -> Scheduler:
    config = SchedulerConfig(rows, budget, max_model_len, chunked)
    return Scheduler(config, KVCacheManager(num_blocks, block_size, True), frozenset({EOS}))


def add(
    core: Scheduler, request_id: str, prompt: list[int], params: SamplingParams | None = None
) -> None:
    core.add(EngineRequest(request_id, prompt, params or SamplingParams(max_tokens=20)))


def answer(
    frame: SchedulerOutput, token_id: int = 1, failed: int | None = None
) -> ModelRunnerOutput:
    """What the workers would say if every row drew the same token."""
    rows = [share.row for share in frame.scheduled if share.samples and share.row != failed]
    return ModelRunnerOutput(
        frame.step, rows, [[token_id]] * len(rows), [] if failed is None else [failed]
    )


def step(core: Scheduler, token_id: int = 1) -> tuple[SchedulerOutput, list[EngineCoreOutput]]:
    frame = core.schedule()
    outputs = core.update(frame, answer(frame, token_id))
    core.check_integrity()
    return frame, outputs


def shares(frame: SchedulerOutput) -> list[tuple[int, int, int, bool]]:
    return [(s.row, s.num_computed, s.num_tokens, s.samples) for s in frame.scheduled]


# frames


def test_a_new_request_is_told_to_its_row_with_all_tokens_and_blocks() -> None:
    core = scheduler()
    params = SamplingParams(max_tokens=3, seed=5)
    add(core, "a", [1, 2, 3, 4, 5], params)
    frame, _ = step(core)
    (started,) = frame.started
    assert (started.row, started.token_ids, started.num_prompt_tokens) == (0, [1, 2, 3, 4, 5], 5)
    assert len(started.block_ids) == 2
    assert started.params == params
    assert shares(frame) == [(0, 0, 5, True)]


def test_a_decode_step_tells_the_row_only_its_new_blocks() -> None:
    core = scheduler()
    add(core, "a", [1, 2, 3])
    first, _ = step(core, 7)
    second, _ = step(core, 8)
    third, _ = step(core, 9)
    assert len(first.started[0].block_ids) == 1
    assert second.appended == []
    assert [(a.row, len(a.block_ids)) for a in third.appended] == [(0, 1)]
    assert shares(third) == [(0, 4, 1, True)]


def test_a_frame_is_not_changed_by_what_comes_after_it() -> None:
    core = scheduler()
    add(core, "a", [1, 2, 3])
    first, _ = step(core)
    step(core)
    assert first.started[0].token_ids == [1, 2, 3]
    assert first.released == []


def test_a_finished_row_is_released_by_the_next_frame_and_given_again() -> None:
    core = scheduler(rows=1)
    add(core, "a", [1, 2], SamplingParams(max_tokens=1))
    add(core, "b", [3, 4], SamplingParams(max_tokens=1))
    first, _ = step(core)
    second, _ = step(core)
    assert (first.released, [s.row for s in first.started]) == ([], [0])
    assert (second.released, [s.row for s in second.started]) == ([0], [0])


def test_the_lowest_free_row_is_given_first() -> None:
    core = scheduler()
    for name in "abc":
        add(core, name, [1])
    step(core)
    core.abort("b")
    core.abort("a")
    add(core, "d", [1])
    assert [started.row for started in core.schedule().started] == [0]


def test_the_same_calls_give_the_same_frames() -> None:
    def run() -> list[SchedulerOutput]:
        core = scheduler(num_blocks=12)
        for number in range(6):
            add(core, f"r{number}", [number % 2] * 9)
        return [step(core, token_id)[0] for token_id in range(20)]

    assert run() == run()


# budget


def test_a_long_prompt_is_computed_in_chunks_and_draws_once_at_its_end() -> None:
    core = scheduler(budget=8)
    add(core, "a", list(range(20)))
    frames = [step(core) for _ in range(4)]
    assert [shares(frame) for frame, _ in frames] == [
        [(0, 0, 8, False)],
        [(0, 8, 8, False)],
        [(0, 16, 4, True)],
        [(0, 20, 1, True)],
    ]
    assert [len(outputs) for _, outputs in frames] == [0, 0, 1, 1]


def test_decodes_go_on_beside_the_chunks_of_a_long_prompt() -> None:
    core = scheduler(budget=8)
    add(core, "a", [1])
    step(core)
    add(core, "b", list(range(20)))
    assert shares(step(core)[0]) == [(0, 1, 1, True), (1, 0, 7, False)]
    assert shares(step(core)[0]) == [(0, 2, 1, True), (1, 7, 7, False)]


def test_a_prompt_takes_what_another_leaves_of_the_budget() -> None:
    core = scheduler(budget=8)
    add(core, "a", [1] * 5)
    add(core, "b", [2] * 5)
    add(core, "c", [3] * 5)
    assert shares(step(core)[0]) == [(0, 0, 5, True), (1, 0, 3, False)]
    assert shares(step(core)[0]) == [(0, 5, 1, True), (1, 3, 2, True), (2, 0, 5, True)]


def test_a_budget_smaller_than_the_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_num_batched_tokens \(3\).*max_num_seqs \(4\)"):
        scheduler(rows=4, budget=3)


def test_without_chunks_a_prompt_waits_until_it_fits_the_budget_whole() -> None:
    core = scheduler(budget=8, chunked=False)
    add(core, "a", [1] * 5)
    add(core, "b", [2] * 5)
    assert shares(step(core)[0]) == [(0, 0, 5, True)]
    assert shares(step(core)[0]) == [(0, 5, 1, True), (1, 0, 5, True)]


def test_without_chunks_a_prompt_longer_than_the_budget_is_computed_alone() -> None:
    core = scheduler(budget=8, chunked=False)
    add(core, "a", [1])
    step(core)
    add(core, "b", [2] * 20)
    add(core, "c", [3] * 20)
    assert shares(step(core)[0]) == [(1, 0, 20, True)]
    assert shares(step(core)[0]) == [(0, 1, 1, True), (1, 20, 1, True)]
    assert shares(step(core)[0]) == [(2, 0, 20, True)]


def test_without_chunks_a_prompt_as_long_as_the_budget_is_not_starved_by_decodes() -> None:
    core = scheduler(budget=8, chunked=False)
    add(core, "a", [1])
    step(core)
    add(core, "b", [2] * 8)
    assert shares(step(core)[0]) == [(1, 0, 8, True)]


# admission


def test_prompt_that_cannot_fit_is_not_admitted() -> None:
    core = scheduler(num_blocks=9)  # 8 usable blocks of 4 tokens
    add(core, "a", [1] * 12, SamplingParams(max_tokens=9))
    step(core)
    add(core, "b", [2] * 20, SamplingParams(max_tokens=1))  # 5 blocks, 5 left, 1 of them for a
    frame, _ = step(core)
    assert frame.started == []
    assert core.stats().waiting == 1
    core.abort("a")
    assert [started.row for started in step(core)[0].started] == [0]


def test_a_later_prompt_does_not_overtake_one_that_waits_for_blocks() -> None:
    core = scheduler(num_blocks=9)
    add(core, "a", [1] * 12)
    step(core)
    add(core, "large", [2] * 20, SamplingParams(max_tokens=1))
    add(core, "small", [3], SamplingParams(max_tokens=1))
    assert step(core)[0].started == []


def test_no_more_requests_run_than_there_are_rows() -> None:
    core = scheduler(rows=2)
    for name in "abc":
        add(core, name, [1])
    step(core)
    assert (core.stats().running, core.stats().waiting) == (2, 1)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([1] * 60, 5, "60 prompt tokens + max_tokens 5 = 65 tokens, but max_model_len is 64"),
        ([1] * 30, 4, r"need 9 KV blocks of 4 tokens, but there are 8: .* raise num_kv_blocks"),
        ([], 4, "at least one token"),
        ([1, -1], 4, "only token ids"),
        ([1, 2**31], 4, "only token ids"),
    ],
)
def test_a_request_that_can_never_fit_is_refused_with_numbers_and_remedy(
    prompt: list[int], max_tokens: int, message: str
) -> None:
    core = scheduler(num_blocks=9)
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        add(core, "a", prompt, SamplingParams(max_tokens=max_tokens))
    assert not core.has_work


def test_a_request_that_fits_exactly_runs_to_its_end(make_world: MakeWorld) -> None:
    world = make_world(num_blocks=9, max_model_len=33)
    world.ask([1] * 30, max_tokens=3, min_tokens=3)  # the last token needs no place
    world.drain()


# preemption


def test_the_youngest_is_preempted_when_blocks_run_out(make_world: MakeWorld) -> None:
    world = make_world(num_blocks=9, max_num_seqs=2)
    for token_id in (1, 2):
        world.ask([token_id] * 8, max_tokens=20, min_tokens=20)
    while world.core.stats().preemptions == 0:
        world.step()
    assert list(world.executor.rows) == [0]
    assert world.executor.frames[-1].released == [1]
    world.drain()


def test_preempted_request_resumes_with_the_same_tokens(make_world: MakeWorld) -> None:
    for caching in (True, False):
        world = make_world(num_blocks=9, max_num_seqs=3, enable_prefix_caching=caching)
        for token_id in (1, 2, 3):
            world.ask([token_id] * 4, max_tokens=20, min_tokens=20)
        world.drain()  # compares every token with the undisturbed answer
        assert world.core.stats().preemptions > 0


def test_prefix_hit_after_preemption_keeps_counters_in_step(make_world: MakeWorld) -> None:
    world = make_world(num_blocks=12, max_num_seqs=3)
    names = [world.ask([1] * 9 + [number], max_tokens=20, min_tokens=20) for number in range(3)]
    world.drain()
    stats = world.core.stats()
    resumed = [s for frame in world.executor.frames for s in frame.started if len(s.token_ids) > 10]
    assert stats.preemptions == len(resumed) > 0
    assert stats.prompt_tokens == 30
    assert stats.prefix_hit_tokens == sum(world.cached[name] for name in names)


def test_preempted_requests_are_admitted_in_order_and_before_newer_ones() -> None:
    core = scheduler(num_blocks=9, rows=3)
    for number, name in enumerate("abc"):
        add(core, name, [number] * 6)
    add(core, "newer", [9])
    while core.stats().preemptions < 2:
        step(core)
    core.abort("a")
    frames = [step(core)[0] for _ in range(30)]
    assert [s.token_ids[0] for frame in frames for s in frame.started][:3] == [1, 2, 9]


def test_cached_tokens_are_those_of_the_first_admission() -> None:
    core = scheduler(num_blocks=9, rows=2)
    add(core, "a", [1] * 8)
    add(core, "b", [2] * 8)
    while core.stats().preemptions == 0:
        step(core)
    core.abort("a")
    frame, (output,) = step(core)
    assert frame.scheduled[0].num_computed > 0  # it hits its own blocks
    assert output.num_cached_tokens == 0


# ending


def test_the_token_that_ends_a_request_is_part_of_its_output() -> None:
    core = scheduler()
    add(core, "a", [1, 2], SamplingParams(max_tokens=9, stop_token_ids=(5,)))
    _, outputs = step(core, 5)
    assert outputs == [EngineCoreOutput("a", [5], FinishReason.STOP, stop_reason=5)]
    assert core.stats().running == 0


def test_a_row_whose_numbers_went_wrong_ends_alone_and_its_blocks_are_not_hit() -> None:
    core = scheduler(budget=8)
    add(core, "good", [2])
    add(core, "poison", [1] * 9)
    step(core)  # the first 7 tokens of poison: a full block is published
    frame = core.schedule()
    good, poison = core.update(frame, answer(frame, 7, failed=1))
    assert (good.request_id, good.new_token_ids) == ("good", [7])
    assert (poison.request_id, poison.finish_reason) == ("poison", FinishReason.ERROR)
    assert (poison.new_token_ids, poison.error) == ([], NUMERIC_ERROR)
    add(core, "again", [1] * 9)
    frame, _ = step(core)
    assert (frame.released, frame.scheduled[-1].num_computed) == ([1], 0)


def test_a_chunk_whose_numbers_went_wrong_ends_its_request_before_it_draws() -> None:
    core = scheduler(budget=8)
    add(core, "poison", [1] * 20)
    frame = core.schedule()
    (output,) = core.update(frame, answer(frame, failed=0))
    assert (output.finish_reason, output.error) == (FinishReason.ERROR, NUMERIC_ERROR)
    assert core.stats().kv_cached_blocks == 0
    core.check_integrity()


def test_an_abort_frees_row_and_blocks_in_every_state() -> None:
    core = scheduler(rows=1)
    add(core, "running", [1] * 9)
    add(core, "waiting", [2] * 9)
    step(core)
    assert core.abort("waiting")
    assert core.abort("running")
    assert not core.abort("running")
    core.check_integrity()
    stats = core.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.kv_free_blocks == stats.kv_total_blocks


def test_an_abort_while_the_step_is_computed_gives_no_output() -> None:
    core = scheduler()
    add(core, "a", [1, 2])
    add(core, "b", [3, 4])
    frame = core.schedule()
    core.abort("a")
    assert [output.request_id for output in core.update(frame, answer(frame))] == ["b"]
    core.check_integrity()


# stats and integrity


def test_stats_count_what_waits_what_runs_and_what_was_done() -> None:
    core = scheduler(rows=1, num_blocks=9)
    add(core, "a", [1] * 5, SamplingParams(max_tokens=10))
    add(core, "b", [2] * 7, SamplingParams(max_tokens=10))
    step(core)
    step(core)
    stats = core.stats()
    assert (stats.running, stats.waiting) == (1, 1)
    assert (stats.waiting_tokens, stats.running_tokens) == (7, 8)
    assert (stats.kv_total_blocks, stats.kv_free_blocks, stats.block_size) == (8, 6, 4)
    assert (stats.steps, stats.prompt_tokens, stats.generation_tokens) == (2, 5, 2)
    core.abort("a")
    assert (core.stats().kv_free_blocks, core.stats().kv_cached_blocks) == (8, 1)


def test_a_row_both_taken_and_free_is_seen() -> None:
    core = scheduler()
    add(core, "a", [1])
    step(core)
    core._rows._free.append(0)
    with pytest.raises(RuntimeError, match="row 0"):
        core.check_integrity()


def test_who_shares_a_prompt_waits_until_it_is_computed_and_finds_it() -> None:
    core, prompt = scheduler(budget=8), list(range(1, 14))
    add(core, "a", prompt)
    for name in ("b", "c"):
        core.add(EngineRequest(name, prompt, SamplingParams(max_tokens=20), prompt_of="a"))
    assert shares(step(core)[0]) == [(0, 0, 8, False)]
    assert shares(step(core)[0]) == [(0, 8, 5, True)]
    assert shares(step(core)[0]) == [(0, 13, 1, True), (1, 12, 1, True), (2, 12, 1, True)]


def test_nobody_pauses_for_one_that_waits_for_its_prompt() -> None:
    core, prompt = scheduler(budget=8, chunked=False), list(range(1, 14))
    add(core, "a", prompt)
    core.add(EngineRequest("b", prompt, SamplingParams(max_tokens=20), prompt_of="a"))
    first = core.schedule()
    assert shares(first) == [(0, 0, 13, True)]
    assert shares(core.schedule()) == [(0, 13, 1, True)], "the answer to the first is not known"


def test_who_shares_a_prompt_with_one_that_left_computes_it() -> None:
    core = scheduler()
    add(core, "a", [1, 2, 3])
    core.add(EngineRequest("b", [1, 2, 3], SamplingParams(max_tokens=2), prompt_of="a"))
    core.schedule()
    core.abort("a")
    assert shares(core.schedule()) == [(0, 0, 3, True)]


def test_nothing_is_generated_where_nothing_is_asked_for() -> None:
    core = scheduler()
    add(core, "a", [1, 2, 3], SamplingParams(max_tokens=0))
    _, (output,) = step(core)
    assert (output.new_token_ids, output.finish_reason) == ([], FinishReason.LENGTH)
    step(core)
    assert not core.has_work


def test_more_logprobs_of_a_prompt_than_fit_a_frame_are_refused() -> None:
    core = scheduler(max_model_len=2**17, num_blocks=2**15 + 10)
    asked = SamplingParams(max_tokens=1, prompt_logprobs=1)
    add(core, "a", [1] * 2**16, asked)
    with pytest.raises(ValueError, match="logprobs of the prompt"):
        add(core, "b", [1] * (2**16 + 1), asked)
