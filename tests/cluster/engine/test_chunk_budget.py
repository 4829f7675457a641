"""Chunks keep a step's time below the target, on machines whose costs nobody told."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.batch import ScheduledRow, SchedulerOutput
from cluster.engine.chunk_budget import LEAST_SHARE, MIN_CHUNK, ChunkBudget, StepWork


def test_the_work_of_a_step_is_decodes_and_chunk_tokens_with_what_lies_before_them() -> None:
    scheduled = [
        ScheduledRow(0, 40, 1, True),
        ScheduledRow(1, 40, 4, True, [7, 8, 9]),
        ScheduledRow(2, 100, 3, False),
    ]
    work = StepWork.of(SchedulerOutput(1, [], [], [], scheduled))
    assert work == StepWork(decodes=2, tokens=3, context=100 + 101 + 102)


def test_without_a_target_or_without_streams_nothing_is_held_back() -> None:
    for target, decodes in ((None, 9), (0.01, 0)):
        budget = ChunkBudget(target)
        budget.begin(decodes)
        assert budget.take(0, 4_000) == 4_000


def test_a_prompt_goes_on_even_where_there_is_no_room() -> None:
    budget = ChunkBudget(0.01)
    budget.observe(StepWork(8, 0, 0), 0.05)  # decodes alone take five times the target
    budget.observe(StepWork(8, 10, 45), 0.15)  # 10 ms a token
    budget.begin(8)
    assert budget.take(0, 4_000) == MIN_CHUNK
    assert budget.take(0, 4_000) == 0
    budget.begin(8)
    assert budget.take(0, 3) == 3


def test_where_decodes_take_all_the_time_prompts_get_a_share_of_it_nonetheless() -> None:
    budget = ChunkBudget(0.01)
    budget.observe(StepWork(8, 0, 0), 0.04)
    budget.observe(StepWork(8, 80, 3_160), 0.048)  # 0.1 ms a token
    budget.begin(8)
    assert budget.take(0, 4_000) == pytest.approx(LEAST_SHARE * 0.04 / 0.0001, abs=1)


def test_nobody_is_served_behind_a_prompt_that_got_less_than_it_wanted() -> None:
    budget = ChunkBudget(1.0)
    budget.observe(StepWork(8, 0, 0), 0.01)
    budget.observe(StepWork(8, 20, 190), 0.012)  # room for hundreds, but growth is bounded
    budget.begin(8)
    assert 0 < budget.take(0, 4_000) < 4_000
    assert budget.take(0, 1) == 0


def test_cheap_tokens_of_prompts_alone_do_not_make_chunks_beside_streams_too_large() -> None:
    budget = ChunkBudget(0.04)
    for _ in range(20):
        budget.observe(StepWork(0, 2_048, 2_048 * 1_023), 0.2)  # 0.1 ms a token
        budget.observe(StepWork(8, 0, 0), 0.02)
    budget.observe(StepWork(8, 16, 120), 0.036)  # 1 ms a token
    budget.observe(StepWork(0, 2_048, 2_048 * 1_023), 0.2)
    budget.begin(8)
    assert MIN_CHUNK < budget.take(0, 4_000) <= 20


class Machine:
    """What steps cost on it."""

    def __init__(self, base: float, token: float, context: float, noise: float, seed: int) -> None:
        self._base, self._token, self._context, self._noise = base, token, context, noise
        self._choose = random.Random(seed)

    def seconds(self, work: StepWork) -> float:
        fixed = self._base * (1 + work.decodes / 32)
        varying = self._token * work.tokens + self._context * work.context
        return (fixed + varying) * (1 + abs(self._choose.gauss(0, self._noise)))


def prefill(budget: ChunkBudget, machine: Machine, decodes: int, prompt: int) -> list[float]:
    """Seconds of the steps in which a prompt is computed."""
    position, steps = 0, []
    while position < prompt:
        budget.begin(decodes)
        count = budget.take(position, prompt - position)
        assert count > 0
        work = StepWork(decodes, count, count * position + count * (count - 1) // 2)
        steps.append(machine.seconds(work))
        budget.observe(work, steps[-1])
        position += count
    return steps


@settings(deadline=None, max_examples=150)
@given(
    st.floats(0.002, 0.05),
    st.floats(2e-5, 4e-3),
    st.floats(0, 2e-7),
    st.floats(0, 0.05),
    st.integers(1, 64),
    st.integers(0, 2**31),
)
def test_nearly_every_step_keeps_the_target_and_prompts_use_the_room(
    base: float, token: float, context: float, noise: float, decodes: int, seed: int
) -> None:
    machine = Machine(base, token, context, noise, seed)
    calm = machine.seconds(StepWork(decodes, 0, 0))
    least = token * MIN_CHUNK + context * MIN_CHUNK * 4_000  # what a prompt gets in any case
    target = max(2 * calm, (calm + least) * 1.5)
    budget = ChunkBudget(target)
    for _ in range(50):
        budget.observe(StepWork(decodes, 0, 0), machine.seconds(StepWork(decodes, 0, 0)))
    steps = prefill(budget, machine, decodes, 4_000)
    late = sum(seconds > target for seconds in steps)
    assert late <= 1 + 0.05 * len(steps)
    assert max(steps) <= 2 * target
    total = token * 4_000 + context * 8_000_000
    enough = total / (target - calm)
    assert len(steps) <= 12 + 3 * enough


def test_what_was_learned_serves_the_next_prompt() -> None:
    machine = Machine(0.01, 0.001, 1e-7, 0.02, 3)
    budget = ChunkBudget(0.04)
    for _ in range(20):
        budget.observe(StepWork(4, 0, 0), machine.seconds(StepWork(4, 0, 0)))
    prefill(budget, machine, 4, 4_000)
    assert max(prefill(budget, machine, 4, 4_000)) <= 0.042


def test_a_single_slow_step_does_not_shrink_the_chunks_for_long() -> None:
    machine = Machine(0.01, 0.001, 0, 0.0, 3)
    budget = ChunkBudget(0.04)
    for _ in range(20):
        budget.observe(StepWork(4, 0, 0), machine.seconds(StepWork(4, 0, 0)))
    prefill(budget, machine, 4, 2_000)
    budget.begin(4)
    before = budget.take(0, 4_000)
    budget.observe(StepWork(4, before, before * before // 2), 1.0)
    prefill(budget, machine, 4, 1_000)
    budget.begin(4)
    assert budget.take(0, 4_000) >= 0.7 * before


@pytest.mark.parametrize("known", [3, 12])
def test_the_cost_of_decodes_is_taken_from_the_nearest_number_measured(known: int) -> None:
    budget = ChunkBudget(0.04)
    budget.observe(StepWork(known, 0, 0), 0.02)
    assert budget.base(8) == 0.02
    assert budget.base(0) == 0.0
