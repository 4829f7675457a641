"""Executor: all ranks as one, seen from the engine core.

Owns the order of a step: the frame goes out to the other ranks, then this rank computes its share,
and its answer is the answer. Knows no scheduler, no processes and no torch.
"""

from collections.abc import Sequence
from typing import Protocol

from cluster.batch import ModelRunnerOutput, SchedulerOutput, encode
from cluster.worker.channel import Channel


class Executor(Protocol):
    """Runs one frame on every rank."""

    def execute(self, scheduled: SchedulerOutput, /) -> ModelRunnerOutput:
        """Rank 0's answer to the frame."""

    def close(self) -> None:
        """Let the other ranks go; they see the end of file."""


class Computes(Protocol):
    """What an executor needs of `cluster.worker.worker.Worker`."""

    def execute(self, frame: SchedulerOutput, /) -> ModelRunnerOutput | None:
        """The answer on rank 0, None elsewhere."""


class InlineExecutor:
    """One rank, in the caller's own process."""

    def __init__(self, worker: Computes) -> None:
        self._worker = worker

    def execute(self, scheduled: SchedulerOutput, /) -> ModelRunnerOutput:
        return _answer(self._worker, scheduled)

    def close(self) -> None:
        """Nothing to let go."""


class GangExecutor:
    """Rank 0's own worker, and a channel to every other rank."""

    def __init__(self, worker: Computes, channels: Sequence[Channel]) -> None:
        self._worker = worker
        self._channels = channels

    def execute(self, scheduled: SchedulerOutput, /) -> ModelRunnerOutput:
        """Raises ChannelClosedError when a rank is gone."""
        frame = encode(scheduled)
        for channel in self._channels:
            channel.send(frame)
        return _answer(self._worker, scheduled)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


def _answer(worker: Computes, scheduled: SchedulerOutput) -> ModelRunnerOutput:
    computed = worker.execute(scheduled)
    if computed is None:
        raise RuntimeError("only rank 0 answers, and only rank 0 drives the others")
    return computed
