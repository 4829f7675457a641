"""The whole deciding half against answers known beforehand, under random disturbance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cluster.engine.booking import NUMERIC_ERROR
from cluster.request import NextTurn

if TYPE_CHECKING:
    from tests.cluster.engine.conftest import World

MakeWorld = Callable[..., "World"]

STEMS = ([0, 1, 2] * 14, [0, 1, 0] * 14, [5] * 40)


@st.composite
def world_settings(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(st.sampled_from([6, 4, 3, 1]))
    block_size = draw(st.sampled_from([2, 1, 4, 8]))
    places = draw(st.sampled_from([80, 64, 96, 160]))
    return {
        "max_num_seqs": rows,
        "max_num_batched_tokens": rows + draw(st.sampled_from([0, 1, 6, 24])),
        "max_model_len": draw(st.sampled_from([80, 80, 40])),
        "enable_chunked_prefill": draw(st.sampled_from([True, True, False])),
        "num_blocks": 1 + places // block_size,
        "block_size": block_size,
        "enable_prefix_caching": draw(st.sampled_from([True, True, True, False])),
        "plans_ahead": draw(st.booleans()),
        "drafts": draw(st.sampled_from([0, 0, 3, 6])),
        "target_gap_s": draw(st.sampled_from([None, None, 1e-4])),
    }


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    stem = draw(st.sampled_from(STEMS))[: draw(st.integers(0, 28))]
    max_tokens = draw(st.sampled_from([30, 24, 12, 5, 1, 0]))
    return {
        "prompt": stem + draw(st.lists(st.integers(0, 20), max_size=3)),
        "salt": draw(st.sampled_from([b"", b"", b"", b"other tenant"])),
        "max_tokens": max_tokens,
        "min_tokens": draw(st.sampled_from([0, 0, max_tokens // 2, max_tokens])),
        "ignore_eos": draw(st.booleans()),
        "stop_token_ids": draw(st.sampled_from([(), (), (3,), (7,)])),
        "prompt_logprobs": draw(st.sampled_from([None, None, None, 0])),
        "next_turn": draw(st.sampled_from([None, NextTurn(len(stem), 4, 7, [0, 1])])),
    }


class Disturbance(RuleBasedStateMachine):
    """Requests come, are computed, and are aborted in any order."""

    def __init__(self, make_world: MakeWorld, totals: Counter[str]) -> None:
        super().__init__()
        self.make_world = make_world
        self.totals = totals

    @initialize(world=world_settings())
    def begin(self, world: dict[str, Any]) -> None:
        self.world = self.make_world(**world)

    @rule(asked=st.lists(requests(), min_size=2, max_size=6))
    def ask(self, asked: list[dict[str, Any]]) -> None:
        for request in asked:
            self.world.ask(**request)

    @rule(asked=requests(), n=st.integers(2, 4))
    def ask_for_choices(self, asked: dict[str, Any], n: int) -> None:
        first = self.world.ask(**asked)
        for _ in range(1, n):
            self.world.ask(**{**asked, "prompt_of": first, "prompt_logprobs": None})

    @rule(times=st.integers(1, 12))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.world.step()

    @precondition(lambda self: self.world.live)
    @rule(data=st.data(), meanwhile=st.booleans())
    def abort(self, data: st.DataObject, meanwhile: bool) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.world.live)))
        self.totals["aborts"] += 1
        if meanwhile:
            self.world.step(abort_meanwhile=request_id)
        else:
            self.world.abort(request_id)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.drain()
        stats = self.world.core.stats()
        self.totals["steps"] += stats.steps
        self.totals["preemptions"] += stats.preemptions
        self.totals["prefix hits"] += stats.prefix_hit_tokens
        self.totals["accepted"] += stats.num_accepted
        self.totals["rejected"] += stats.num_drafted - stats.num_accepted
        for answer in self.world.answers.values():
            self.totals[answer.error or str(answer.finish_reason)] += 1


def test_ten_thousand_random_steps_leave_books_and_answers_right(make_world: MakeWorld) -> None:
    totals: Counter[str] = Counter()

    class Run(Disturbance):
        def __init__(self) -> None:
            super().__init__(make_world, totals)

    while totals["steps"] < 10_000:
        run_state_machine_as_test(
            Run,
            settings=settings(
                max_examples=40,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    happened = ("aborts", "preemptions", "prefix hits", "stop", "length", NUMERIC_ERROR)
    assert all(totals[kind] for kind in (*happened, "accepted", "rejected"))


def test_a_step_is_schedule_execute_update(make_world: MakeWorld) -> None:
    world = make_world()
    request_id = world.ask([1, 2, 3], max_tokens=2, ignore_eos=True)
    first, second = world.core.step(), world.core.step()
    assert [output.request_id for output in first + second] == [request_id] * 2
    assert [frame.step for frame in world.executor.frames] == [1, 2]


def test_a_refused_request_ends_at_once_and_the_core_goes_on(make_world: MakeWorld) -> None:
    world = make_world(max_model_len=8)
    refused = world.ask([1] * 8, max_tokens=1)
    assert "max_model_len is 8" in (world.answers[refused].error or "")
    world.ask([1] * 7, max_tokens=1)
    world.drain()


def test_an_id_in_use_is_refused_and_the_first_request_goes_on(make_world: MakeWorld) -> None:
    world = make_world()
    request_id = world.ask([1, 2], max_tokens=5, min_tokens=5)
    refusal = world.core.add(world.asked[request_id])
    assert refusal is not None
    assert "already in use" in (refusal.error or "")
    world.drain()


def test_a_core_without_requests_has_no_work(make_world: MakeWorld) -> None:
    world = make_world()
    assert not world.core.has_work
    assert not world.core.abort("unknown")


def test_the_last_frame_tells_the_workers_that_the_row_is_free(make_world: MakeWorld) -> None:
    world = make_world()
    world.ask([1, 2, 3], max_tokens=1)
    world.step()
    assert world.core.stats().running == 0
    assert world.core.has_work
    assert world.step() == []
    assert not world.executor.rows
    assert not world.core.has_work
    assert world.core.stats().steps == 1


def test_the_property_test_would_see_a_foreign_block(make_world: MakeWorld) -> None:
    world = make_world()
    world.ask([1, 2, 3, 4, 5], max_tokens=9, min_tokens=9)
    world.step()
    block_id = world.executor.rows[0].block_ids[0]
    world.executor.memory[block_id][2] += 1
    with pytest.raises(AssertionError, match="reads another prefix at 2"):
        world.step()
