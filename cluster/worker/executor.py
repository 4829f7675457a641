"""Executor: all ranks as one, seen from the engine core.

Owns the order of a step: the frame goes out to the other ranks, then this rank computes its share,
and its answer is the answer. Knows no scheduler, no processes and no torch.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cluster.batch import ModelRunnerOutput, SchedulerOutput, encode
from cluster.worker.channel import Channel


class Answer(Protocol):
    """What a submitted frame will give."""

    def result(self) -> ModelRunnerOutput:
        """Rank 0's answer; blocks until it is there."""


class Computed(NamedTuple):
    """An answer that is there already."""

    output: ModelRunnerOutput

    def result(self) -> ModelRunnerOutput:
        return self.output


class Executor(Protocol):
    """Runs frames on every rank, in the order in which they are submitted."""

    def submit(self, scheduled: SchedulerOutput, /) -> Answer:
        """Let every rank compute the frame."""

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

    def submit(self, scheduled: SchedulerOutput, /) -> Computed:
        return _answer(self._worker, scheduled)

    def close(self) -> None:
        """Nothing to let go."""


class GangExecutor:
    """Rank 0's own worker, and a channel to every other rank."""

    def __init__(self, worker: Computes, channels: Sequence[Channel]) -> None:
        self._worker = worker
        self._channels = channels

    def submit(self, scheduled: SchedulerOutput, /) -> Computed:
        """Raises ChannelClosedError when a rank is gone."""
        frame = encode(scheduled)
        for channel in self._channels:
            channel.send(frame)
        return _answer(self._worker, scheduled)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


def _answer(worker: Computes, scheduled: SchedulerOutput) -> Computed:
    computed = worker.execute(scheduled)
    if computed is None:
        raise RuntimeError("only rank 0 answers, and only rank 0 drives the others")
    return Computed(computed)
