"""Frames arrive whole and in order, strangers stay outside, and a peer's end is seen at once."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.worker.channel import (
    PACKET_BYTES,
    Channel,
    ChannelClosedError,
    ChannelTimeoutError,
    Listener,
    PacketChannel,
    StreamChannel,
    cut_frame,
    dial,
    join,
)

Pair = tuple[Channel, Channel]


def packets() -> Pair:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return PacketChannel(left), PacketChannel(right)


def stream() -> Pair:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return StreamChannel(left), StreamChannel(right)


@pytest.fixture(params=[packets, stream])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    make: Callable[[], Pair] = request.param
    left, right = make()
    yield left, right
    left.close()
    right.close()


def test_frames_of_every_size_arrive_whole_and_in_order(pair: Pair) -> None:
    left, right = pair
    sizes = [0, 1, 100, PACKET_BYTES - 1, PACKET_BYTES, PACKET_BYTES + 1, 3 * 2**20, 0, 7]
    frames = [os.urandom(size) for size in sizes]

    def send_all() -> None:
        for frame in frames:
            left.send(frame)

    sender = threading.Thread(target=send_all)
    sender.start()
    received = [right.receive(timeout_s=30) for _ in frames]
    sender.join()
    assert received == frames


def test_both_directions_are_open_at_once(pair: Pair) -> None:
    left, right = pair
    left.send(b"ping")
    right.send(b"pong")
    assert (right.receive(), left.receive()) == (b"ping", b"pong")


def test_silence_is_a_timeout_and_the_channel_lives_on(pair: Pair) -> None:
    left, right = pair
    with pytest.raises(ChannelTimeoutError):
        right.receive(timeout_s=0.01)
    assert not right.poll(0.0)
    left.send(b"late")
    assert right.poll()
    assert right.receive(timeout_s=1) == b"late"


def test_what_was_sent_before_the_end_is_still_received(pair: Pair) -> None:
    left, right = pair
    assert not right.hung_up()
    left.send(b"last words")
    left.close()
    assert right.hung_up()
    assert right.receive() == b"last words"
    with pytest.raises(ChannelClosedError):
        right.receive()
    with pytest.raises(ChannelClosedError):
        right.send(b"x")


def test_an_end_in_the_middle_of_a_frame_is_an_end() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"\0\0\0\5ab")
    theirs.close()
    with pytest.raises(ChannelClosedError):
        StreamChannel(ours).receive()
    ours.close()


def test_an_absurd_length_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(ChannelClosedError, match="too large"):
        StreamChannel(ours).receive()
    ours.close()
    theirs.close()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 30)))
def test_frames_are_cut_alike_however_the_stream_is_split(
    frames: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    received, found = bytearray(), []
    while data:
        size = cuts.pop() if cuts else len(data)
        received += data[:size]
        data = data[size:]
        while (frame := cut_frame(received)) is not None:
            found.append(frame)
    assert found == frames
    assert not received


def listener_addresses(directory: Path) -> list[str]:
    return [f"seqpacket://{directory}/ranks.sock", "tcp://127.0.0.1:0"]


def test_only_who_knows_the_token_is_let_in(tmp_path: Path) -> None:
    for address in listener_addresses(tmp_path):
        listener = Listener(address)
        with pytest.raises(ChannelTimeoutError):
            listener.accept("secret", timeout_s=0.0)
        stranger = join(listener.address, "guess", 1)
        friend = join(listener.address, "secret", 2)
        rank, channel = listener.accept("secret", timeout_s=10)
        assert rank == 2
        friend.send(b"hello")
        assert channel.receive(10) == b"hello"
        assert stranger.hung_up(timeout_s=10)
        for end in (listener, stranger, friend, channel):
            end.close()


def test_noise_instead_of_a_greeting_is_hung_up_on(tmp_path: Path) -> None:
    listener = Listener("tcp://127.0.0.1:0")
    noise = dial(listener.address)
    noise.send(b"GET / HTTP/1.1\r\n\r\n")
    short = dial(listener.address)
    short.send(msgspec.msgpack.encode(["only a token"]))
    friend = join(listener.address, "secret", 0)
    rank, channel = listener.accept("secret", timeout_s=10)
    assert rank == 0
    for end in (listener, noise, short, friend, channel):
        end.close()


def test_a_rank_socket_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "ranks.sock"
    listener = Listener(f"seqpacket://{path}")
    assert path.stat().st_mode & 0o077 == 0
    listener.close()


def test_nobody_at_the_address_is_said_so(tmp_path: Path) -> None:
    for address in (f"seqpacket://{tmp_path}/nobody", f"unix://{tmp_path}/nobody"):
        with pytest.raises(ChannelClosedError, match="No such file"):
            join(address, "secret", 1)
    probe = socket.create_server(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    probe.close()
    with pytest.raises(ChannelClosedError):
        dial(f"tcp://127.0.0.1:{port}")


def test_a_killed_process_is_an_end_of_file(tmp_path: Path) -> None:
    address = f"seqpacket://{tmp_path}/ranks.sock"
    listener = Listener(address)
    code = (
        "import sys, time; from cluster.worker.channel import join;"
        "channel = join(sys.argv[1], 'secret', 3); channel.send(b'up'); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, address]) as process:
        rank, channel = listener.accept("secret", timeout_s=60)
        assert (rank, channel.receive(10)) == (3, b"up")
        assert not channel.hung_up()
        process.kill()
        with pytest.raises(ChannelClosedError):
            channel.receive(timeout_s=10)
    channel.close()
    listener.close()
