"""Inbox and step take turns: one frame per step, and sleep when there is nothing to do."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from cluster.engine.core_loop import CoreLoop
from cluster.engine.core_messages import AbortRequest, AddRequest, StepOutputs, ToRank
from cluster.engine.grammar_wait import GrammarWait
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
        self.while_idle: Callable[[], None] = lambda: None

    def pending(self, timeout_s: float = 0.0) -> bool:
        if timeout_s:
            self.while_idle()
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


class Ranks:
    """They have compiled what is in `compiled`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.compiled: set[str] = set()
        self.collected: set[str] = set()

    def begin(self, source: str) -> int:
        self.asked.append(source)
        return len(self.asked) - 1

    def collect(self) -> None:
        self.collected = set(self.compiled)

    def is_done(self, number: int) -> bool:
        return self.asked[number] in self.collected


def add(request_id: str, max_tokens: int, grammar: str | None = None) -> AddRequest:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, grammar=grammar)
    return AddRequest(EngineRequest(request_id, [1, 2, 3], params))


def loop_over(world: "World", script: Script, ranks: Ranks | None = None) -> CoreLoop:
    return CoreLoop(world.core, script, GrammarWait(ranks or Ranks()))


def tokens_of(script: Script) -> list[str]:
    """Whose tokens came, in order, each request once."""
    outputs = [output for frame in script.frames for output in frame.step.outputs]
    return list(dict.fromkeys(output.request_id for output in outputs if output.new_token_ids))


@pytest.fixture
def world(make_world: Callable[..., "World"]) -> "World":
    return make_world(max_num_seqs=4)


def test_one_frame_per_step_until_nothing_is_left(world: "World") -> None:
    script = Script(add("a", 2), add("b", 5))
    with pytest.raises(WouldSleepError):
        loop_over(world, script).run()
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
    loop = loop_over(world, script)
    loop.turn()
    script.inbox.extend([AbortRequest("a"), AbortRequest("never seen")])
    loop.turn()
    assert script.frames[-1].step.outputs == []
    assert script.frames[-1].step.stats.running == 0
    assert not world.core.has_work


def test_an_abort_before_the_first_step_still_tells_the_load(world: "World") -> None:
    script = Script(add("a", 9), AbortRequest("a"))
    loop_over(world, script).turn()
    assert [frame.step.stats.waiting for frame in script.frames] == [0]


def test_an_impossible_request_is_answered_without_a_step(world: "World") -> None:
    script = Script(add("a", 1000))
    loop_over(world, script).turn()
    (refusal,) = script.frames[0].step.outputs
    assert refusal.finish_reason is FinishReason.ERROR
    assert "max_model_len" in (refusal.error or "")
    assert script.frames[0].step.stats.steps == 0


def test_a_grammar_that_takes_long_costs_its_own_request_alone(world: "World") -> None:
    ranks = Ranks()
    script = Script(add("slow", 2, "long"), add("a", 3), add("quick", 2, "short"))
    ranks.compiled.add("short")
    loop = loop_over(world, script, ranks)
    loop.turn()
    stats = script.frames[-1].step.stats
    assert (stats.waiting, stats.waiting_tokens) == (1, 3)
    while world.core.has_work:
        loop.turn()
    assert tokens_of(script) == ["a", "quick"]
    ranks.compiled.add("long")
    with pytest.raises(WouldSleepError):
        loop.run()
    assert tokens_of(script) == ["a", "quick", "slow"]
    assert script.frames[-1].step.stats.waiting == 0


def test_an_idle_engine_begins_as_soon_as_the_grammar_is_compiled(world: "World") -> None:
    ranks, script = Ranks(), Script(add("slow", 2, "long"))
    loop = loop_over(world, script, ranks)
    loop.turn()
    assert not world.core.has_work
    sleeps = iter(range(3))
    script.while_idle = lambda: ranks.compiled.add("long") if next(sleeps) == 2 else None
    loop.turn()
    assert world.core.has_work
    assert len(script.frames) == 2, "an idle loop has nothing to tell"


def test_a_message_wakes_an_engine_that_waits_for_a_grammar(world: "World") -> None:
    ranks, script = Ranks(), Script(add("slow", 2, "long"))
    loop = loop_over(world, script, ranks)
    loop.turn()
    script.while_idle = lambda: script.inbox.append(add("a", 1))
    loop.turn()
    assert tokens_of(script) == ["a"]


def test_a_request_that_was_given_up_does_not_begin_when_its_grammar_is_there(
    world: "World",
) -> None:
    ranks = Ranks()
    script = Script(add("slow", 2, "long"), AbortRequest("slow"))
    loop = loop_over(world, script, ranks)
    loop.turn()
    assert script.frames[-1].step.stats.waiting == 0
    ranks.compiled.add("long")
    with pytest.raises(WouldSleepError):
        loop.run()
    assert not tokens_of(script)


def test_a_request_id_cannot_be_in_use_twice_while_its_grammar_is_compiled(
    world: "World",
) -> None:
    ranks = Ranks()
    script = Script(add("a", 2, "long"), add("a", 2, "long"))
    loop = loop_over(world, script, ranks)
    loop.turn()
    assert ranks.asked == ["long"]
    ranks.compiled.add("long")
    with pytest.raises(WouldSleepError):
        loop.run()
    errors = [output.error for frame in script.frames for output in frame.step.outputs]
    assert [error for error in errors if error is not None] == ["request id 'a' is already in use"]
