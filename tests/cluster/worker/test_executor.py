"""Every rank computes the same frame, and rank 0's answer is the answer."""

import socket
import threading
from typing import Any, NamedTuple

import pytest

from cluster.batch import (
    ModelRunnerOutput,
    ScheduledRow,
    SchedulerOutput,
    StartedRow,
    decode_scheduler_output,
    encode,
)
from cluster.request import SamplingParams
from cluster.worker.channel import ChannelClosedError, PacketChannel
from cluster.worker.executor import SETTLE, GangExecutor, InlineExecutor

PROMPT = list(range(131_072))
FRAME = SchedulerOutput(
    step=4,
    released=[2],
    started=[StartedRow(0, PROMPT, len(PROMPT), list(range(1, 8193)), SamplingParams())],
    appended=[],
    scheduled=[ScheduledRow(0, 0, len(PROMPT), samples=True)],
)


class Notes:
    """A worker that notes its frames."""

    def __init__(self, answers: bool) -> None:
        self.frames: list[SchedulerOutput] = []
        self._answers = answers

    def execute(self, frame: SchedulerOutput) -> ModelRunnerOutput | None:
        self.frames.append(frame)
        return ModelRunnerOutput(frame.step, [0], [[7]]) if self._answers else None


class Device:
    """A worker whose answers need settling while no later frame was launched."""

    def __init__(self) -> None:
        self.frames: list[SchedulerOutput] = []
        self.drawn: list[int] = []

    def launch(self, frame: SchedulerOutput) -> "OnDevice":
        self.frames.append(frame)
        return OnDevice(self, frame)


class OnDevice(NamedTuple):
    device: Device
    frame: SchedulerOutput

    def begin_draw(self) -> None:
        self.device.drawn.append(self.frame.step)

    def needs_settling(self) -> bool:
        return self.device.frames[-1] is self.frame

    def result(self) -> ModelRunnerOutput:
        return ModelRunnerOutput(self.frame.step, [0], [[7]])


def channels() -> tuple[PacketChannel, PacketChannel]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return PacketChannel(left), PacketChannel(right)


def test_one_rank_answers_inline() -> None:
    executor = InlineExecutor(Notes(answers=True))
    assert executor.submit(FRAME).result() == ModelRunnerOutput(4, [0], [[7]])
    executor.close()


def test_a_worker_without_an_answer_cannot_be_rank_0() -> None:
    with pytest.raises(RuntimeError, match="rank 0"):
        InlineExecutor(Notes(answers=False)).submit(FRAME)


def test_every_rank_gets_the_same_frame_even_a_large_one() -> None:
    pairs = [channels() for _ in range(3)]
    received: list[SchedulerOutput] = []
    received_after: list[bytes] = []

    def follow(channel: PacketChannel) -> None:
        received.append(decode_scheduler_output(channel.receive(30)))
        received_after.append(channel.receive(30))

    followers = [threading.Thread(target=follow, args=(there,)) for _, there in pairs]
    for follower in followers:
        follower.start()
    worker = Device()
    executor = GangExecutor(worker, [here for here, _ in pairs])
    assert executor.submit(FRAME).result().token_ids == [[7]]
    for follower in followers:
        follower.join()
    assert received == [FRAME] * 3
    assert received_after == [SETTLE] * 3
    assert worker.frames == [FRAME]
    executor.close()
    for _, there in pairs:
        with pytest.raises(ChannelClosedError):
            there.receive()
        there.close()


def test_ranks_that_get_a_later_frame_settle_by_that_one() -> None:
    here, there = channels()
    executor = GangExecutor(Device(), [here])
    frames = [SchedulerOutput(step, [], [], [], []) for step in (1, 2)]
    first, second = [executor.submit(frame) for frame in frames]
    assert first.result().step == 1
    assert second.result().step == 2
    assert [there.receive(30) for _ in range(3)] == [*map(encode, frames), SETTLE]
    here.close()
    there.close()


def test_a_lost_rank_is_an_error_before_anything_is_computed() -> None:
    here, there = channels()
    there.close()
    worker = Device()
    with pytest.raises(ChannelClosedError):
        GangExecutor(worker, [here]).submit(FRAME)
    assert not worker.frames
    here.close()


def test_nothing_is_sent_to_ranks_that_wait_for_this_one_to_draw() -> None:
    """They would not read, and sending would wait for them: a draw by the host needs all ranks."""
    drawn_before: list[list[int]] = []
    device = Device()

    class Noting:
        def send(self, frame: bytes) -> None:
            drawn_before.append(list(device.drawn))

    channel: Any = Noting()
    executor = GangExecutor(device, [channel])
    executor.submit(SchedulerOutput(1, [], [], [], []))
    executor.tell(b"a grammar")
    executor.submit(SchedulerOutput(2, [], [], [], []))
    assert drawn_before == [[], [1], [1, 1]]
