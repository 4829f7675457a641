"""EngineCore: one replica's heartbeat.

Owns the scheduler and the executor, and the clock by which steps are measured. Knows nothing of
HTTP, Ray, text, devices and sockets; whoever runs the loop calls `step` while `has_work`.
Invariant: after every step, free + cached + used blocks = all blocks.

Planned one step ahead, a device that computes by itself never waits for the scheduler:

    plain   plan 1 | compute 1 | book 1 | plan 2 | compute 2 | book 2
    ahead   plan 1 | compute 1 ........ | compute 2 ........ | compute 3
                   | plan 2             | book 1, plan 3     | book 2, plan 4

Where computing happens on the same cores as planning there is nothing to gain: the executor then
computes inside `submit`, a token is booked one step later than it could be, and it is off.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from cluster.batch import ModelRunnerOutput, SchedulerOutput
from cluster.engine.scheduler import Scheduler
from cluster.request import EngineCoreOutput, EngineRequest, EngineStats, FinishReason


class Answer(Protocol):
    """What a submitted frame will give."""

    def result(self) -> ModelRunnerOutput:
        """Rank 0's answer; blocks until it is there."""


class Executor(Protocol):
    """All ranks as one: what the core needs of `cluster.worker.executor`."""

    def submit(self, scheduled: SchedulerOutput, /) -> Answer:
        """Let every rank compute this frame, behind those submitted before."""


class _UnderWay(NamedTuple):
    frame: SchedulerOutput
    answer: Answer
    submitted_s: float


class EngineCore:
    """Turns waiting requests into tokens, one step at a time.

    Args:
        plans_ahead: submit a step before the answer to the one before it is known.
        clock: seconds from any beginning.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        plans_ahead: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self._plans_ahead = plans_ahead
        self._clock = clock
        self._under_way: deque[_UnderWay] = deque()  # at most two
        self._answered_s = clock()

    @property
    def has_work(self) -> bool:
        return bool(self._under_way) or self.scheduler.has_work

    def add(self, request: EngineRequest) -> EngineCoreOutput | None:
        """Take a request in; the output that ends it at once when it can never be computed."""
        try:
            self.scheduler.add(request)
        except ValueError as refusal:
            return EngineCoreOutput(
                request.request_id, [], finish_reason=FinishReason.ERROR, error=str(refusal)
            )
        return None

    def abort(self, request_id: str) -> bool:
        """End a request without a further output; False when it is not here."""
        return self.scheduler.abort(request_id)

    def step(self) -> list[EngineCoreOutput]:
        """The outputs of the oldest step under way; plans it first if there is none."""
        if not self._under_way:
            self._submit()
        if self._plans_ahead and self.scheduler.can_plan_ahead:
            self._submit()
        oldest = self._under_way.popleft()
        computed = oldest.answer.result()
        now = self._clock()
        # what streams wait: from answer to answer while steps follow each other
        self.scheduler.observe(oldest.frame, now - max(oldest.submitted_s, self._answered_s))
        self._answered_s = now
        return self.scheduler.update(oldest.frame, computed)  # append, commit blocks, finish

    def stats(self) -> EngineStats:
        return self.scheduler.stats()

    def _submit(self) -> None:
        begun = self._clock()
        frame = self.scheduler.schedule()  # who computes how many tokens
        self._under_way.append(_UnderWay(frame, self.executor.submit(frame), begun))
