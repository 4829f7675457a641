"""Rank 0 knows when every rank has a grammar, and goes on meanwhile."""

import socket
from collections.abc import Callable, Iterator

import pytest

from cluster.batch import SchedulerOutput, encode
from cluster.worker.channel import ChannelClosedError, PacketChannel
from cluster.worker.executor import SETTLE
from cluster.worker.grammar_call import GrammarCall, answered_grammar

LARGE = "start: " + "é" * 40_000  # in two packets


class Bench:
    """A worker that compiles when it is told to."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, Callable[[], None]]] = []

    def compile_grammar(self, source: str, done: Callable[[], None]) -> None:
        self.begun.append((source, done))

    def finish(self, source: str) -> None:
        for begun, done in self.begun:
            if begun == source:
                done()


class Known:
    """A worker that has all grammars already."""

    def compile_grammar(self, source: str, done: Callable[[], None]) -> None:
        done()


@pytest.fixture
def channels() -> Iterator[tuple[PacketChannel, PacketChannel]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pair = PacketChannel(left), PacketChannel(right)
    yield pair
    for channel in pair:
        channel.close()


def call_over(worker: Bench | Known, *channels: PacketChannel) -> GrammarCall:
    def tell(frame: bytes) -> None:
        for channel in channels:
            channel.send(frame)

    return GrammarCall(worker, tell, channels)


def is_done(call: GrammarCall, number: int) -> bool:
    call.collect()
    return call.is_done(number)


def test_a_rank_alone_is_done_when_it_is_done() -> None:
    worker = Bench()
    call = call_over(worker)
    first, second = call.begin("a"), call.begin("b")
    assert not is_done(call, first)
    worker.finish("b")
    assert (is_done(call, first), is_done(call, second)) == (False, True)
    known = call_over(Known())
    assert is_done(known, known.begin("a"))


def test_a_grammar_is_done_when_the_last_rank_is(
    channels: tuple[PacketChannel, PacketChannel],
) -> None:
    here, there = channels
    own, other = Bench(), Bench()
    call = call_over(own, here)
    numbers = {source: call.begin(source) for source in ("a", LARGE, "b")}
    for _ in numbers:
        assert answered_grammar(there.receive(30), other, there)
    assert [source for source, _ in other.begun] == list(numbers)
    own.finish("a")
    assert not is_done(call, numbers["a"])
    other.finish("b")
    assert not is_done(call, numbers["b"])
    other.finish("a")
    assert is_done(call, numbers["a"])
    own.finish(LARGE)
    other.finish(LARGE)
    assert is_done(call, numbers[LARGE])
    own.finish("b")
    assert is_done(call, numbers["b"])


@pytest.mark.parametrize("frame", [SETTLE, encode(SchedulerOutput(1, [], [], [], []))])
def test_what_is_about_something_else_is_left_alone(
    frame: bytes, channels: tuple[PacketChannel, PacketChannel]
) -> None:
    assert not answered_grammar(frame, Bench(), channels[0])


def test_a_lost_rank_is_found_out_by_asking(
    channels: tuple[PacketChannel, PacketChannel],
) -> None:
    here, there = channels
    call = call_over(Known(), here)
    number = call.begin("a")
    there.receive(30)
    there.close()
    with pytest.raises(ChannelClosedError):
        is_done(call, number)
    with pytest.raises(ChannelClosedError):
        call.begin("b")


def test_a_rank_that_cannot_answer_any_more_leaves_it_to_its_next_read(
    channels: tuple[PacketChannel, PacketChannel],
) -> None:
    here, there = channels
    call_over(Known(), here).begin("a")
    frame, worker = there.receive(30), Bench()
    answered_grammar(frame, worker, there)
    here.close()
    worker.finish("a")
    with pytest.raises(ChannelClosedError):
        there.receive(30)


def test_answers_that_nobody_waits_for_any_more_do_not_fill_the_way(
    channels: tuple[PacketChannel, PacketChannel],
) -> None:
    here, there = channels
    call = call_over(Known(), here)
    for _ in range(2_000):  # far more than a socket holds, in either direction
        call.begin("a")
        assert answered_grammar(there.receive(30), Known(), there)
    assert is_done(call, 2_000)
    assert not call._missing
