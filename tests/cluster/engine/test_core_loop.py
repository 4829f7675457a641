"""Inbox and step take turns: one frame per step, and sleep when there is nothing to do."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from cluster.engine.core_loop import CoreLoop
from cluster.engine.core_messages import AbortRequest, AddRequest, StepOutputs, ToRank
from cluster.request import EngineRequest, FinishReason, SamplingParams

if TYPE_CHECKING:
    from tests.cluster.engine.conftest import World


class WouldSleepError(Exception):
    """The loop waits for a message, and none is coming."""


class Script:
    """A replica whose messages are known beforehand."""

    def __init__(self, *messages: ToRank) -> None:
        self.inbox = deque(messages)
        self.frames: list[StepOutputs] = []
        self.is_busy = False

    def pending(self) -> bool:
        return bool(self.inbox)

    def receive(self) -> ToRank:
        assert not self.is_busy, "waiting is not working"
        if not self.inbox:
            raise WouldSleepError
        return self.inbox.popleft()

    def send(self, message: StepOutputs) -> None:
        self.frames.append(message)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        self.is_busy = True
        yield
        self.is_busy = False


def add(request_id: str, max_tokens: int) -> AddRequest:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return AddRequest(EngineRequest(request_id, [1, 2, 3], params))


@pytest.fixture
def world(make_world: Callable[..., "World"]) -> "World":
    return make_world(max_num_seqs=4)


def test_one_frame_per_step_until_nothing_is_left(world: "World") -> None:
    script = Script(add("a", 2), add("b", 5))
    with pytest.raises(WouldSleepError):
        CoreLoop(world.core, script).run()
    tokens: dict[str, int] = {}
    for frame in script.frames:
        for output in frame.step.outputs:
            tokens[output.request_id] = tokens.get(output.request_id, 0) + len(output.new_token_ids)
    assert tokens == {"a": 2, "b": 5}
    assert len(script.frames) == 6  # the last one only releases a row
    stats = script.frames[-1].step.stats
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.kv_free_blocks == stats.kv_total_blocks


def test_messages_are_taken_in_between_two_steps(world: "World") -> None:
    script = Script(add("a", 9))
    loop = CoreLoop(world.core, script)
    loop.turn()
    script.inbox.extend([AbortRequest("a"), AbortRequest("never seen")])
    loop.turn()
    assert script.frames[-1].step.outputs == []
    assert script.frames[-1].step.stats.running == 0
    assert not world.core.has_work


def test_an_abort_before_the_first_step_still_tells_the_load(world: "World") -> None:
    script = Script(add("a", 9), AbortRequest("a"))
    CoreLoop(world.core, script).turn()
    assert [frame.step.stats.waiting for frame in script.frames] == [0]


def test_an_impossible_request_is_answered_without_a_step(world: "World") -> None:
    script = Script(add("a", 1000))
    CoreLoop(world.core, script).turn()
    (refusal,) = script.frames[0].step.outputs
    assert refusal.finish_reason is FinishReason.ERROR
    assert "max_model_len" in (refusal.error or "")
    assert script.frames[0].step.stats.steps == 0
