"""EngineCore: one replica's heartbeat.

Owns the scheduler and the executor. Knows nothing of HTTP, Ray, text, devices and sockets; whoever
runs the loop calls `step` while `has_work`.
Invariant: after every step, free + cached + used blocks = all blocks.
"""

from typing import Protocol

from cluster.batch import ModelRunnerOutput, SchedulerOutput
from cluster.engine.scheduler import Scheduler
from cluster.request import EngineCoreOutput, EngineRequest, EngineStats, FinishReason


class Executor(Protocol):
    """All ranks as one: what the core needs of `cluster.worker.executor`."""

    def execute(self, scheduled: SchedulerOutput, /) -> ModelRunnerOutput:
        """Let every rank compute this frame; rank 0's answer."""


class EngineCore:
    """Turns waiting requests into tokens, one step at a time."""

    def __init__(self, scheduler: Scheduler, executor: Executor) -> None:
        self.scheduler = scheduler
        self.executor = executor

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

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
        scheduled = self.scheduler.schedule()  # who computes how many tokens
        computed = self.executor.execute(scheduled)  # all ranks; rank 0 answers
        return self.scheduler.update(scheduled, computed)  # append, commit blocks, finish

    def stats(self) -> EngineStats:
        return self.scheduler.stats()
