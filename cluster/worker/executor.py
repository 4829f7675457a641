"""Executor: all ranks as one, seen from the engine core.

Owns the order of a step: the frame goes out to the other ranks, then this rank computes its share,
and its answer is the answer. A device that computes by itself is given the next frame before the
answer to the last is there; ranks then settle a frame when they draw from the next one, or when
rank 0 says so because there is none. Knows no scheduler, no processes and no torch.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cluster.batch import ModelRunnerOutput, SchedulerOutput, encode
from cluster.worker.channel import Channel

SETTLE = b""
"""In place of a frame: settle the last one, as rank 0 does."""


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
    """A worker that computes a frame at once."""

    def execute(self, frame: SchedulerOutput, /) -> ModelRunnerOutput | None:
        """The answer on rank 0, None elsewhere."""


class Launched(Protocol):
    """A frame that rank 0 has let its device compute."""

    def begin_draw(self) -> None:
        """Draw, unless that has begun: the other ranks do at once, and may wait for this one."""

    def needs_settling(self) -> bool:
        """Whether the other ranks must be told to settle this frame: its answer is still on its
        way, and no later frame would let them do so."""

    def result(self) -> ModelRunnerOutput:
        """The answer; waits for the device."""


class Launches(Protocol):
    """What a gang's executor needs of `cluster.worker.worker.Worker`."""

    def launch(self, frame: SchedulerOutput, /) -> Launched:
        """Let the device compute the frame; the host goes on."""


class InlineExecutor:
    """One rank, in the caller's own process."""

    def __init__(self, worker: Computes) -> None:
        self._worker = worker

    def submit(self, scheduled: SchedulerOutput, /) -> Computed:
        computed = self._worker.execute(scheduled)
        if computed is None:
            raise RuntimeError("only rank 0 answers, and only rank 0 drives the others")
        return Computed(computed)

    def close(self) -> None:
        """Nothing to let go."""


class GangExecutor:
    """Rank 0's own worker, and a channel to every other rank."""

    def __init__(self, worker: Launches, channels: Sequence[Channel]) -> None:
        self._worker = worker
        self._channels = channels
        self._launched: Launched | None = None

    def submit(self, scheduled: SchedulerOutput, /) -> Answer:
        """Raises ChannelClosedError when a rank is gone."""
        self.tell(encode(scheduled))
        self._launched = self._worker.launch(scheduled)
        return _UnderWay(self, self._launched)

    def tell(self, frame: bytes) -> None:
        """Sending may have to wait until a rank reads, which it does not while it waits for ours.

        Raises:
            ChannelClosedError: a rank is gone.
        """
        if self._launched is not None:
            self._launched.begin_draw()
        for channel in self._channels:
            channel.send(frame)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


class _UnderWay(NamedTuple):
    executor: GangExecutor
    launched: Launched

    def result(self) -> ModelRunnerOutput:
        if self.launched.needs_settling():
            self.executor.tell(SETTLE)
        return self.launched.result()
