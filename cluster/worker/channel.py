"""Channel: whole frames between two processes, by the fastest way there is.

Owns framing, deadlines, authentication and the news that a peer is gone. Frames are bytes; what
they mean is the business of both ends. Knows no torch and no requests; nothing is unpickled.

    seqpacket:///path   one node, rank 0 -> rank r: packets    | more? 1 byte | <= 64 KiB | ...
    unix:///path        one node, replica <-> rank: a stream   | length, uint32 | payload |
    tcp://host:port     between nodes, either purpose: a stream, NODELAY, dead peers noticed

A Unix socket is guarded by its directory, which only its owner may enter (mode 0700); a TCP
connection by the token in its first frame. A peer's death is an end of file, seen at once.
"""

import hmac
import os
import select
import socket
import struct
import threading
import time
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

MAX_FRAME_BYTES = 256 * 2**20
PACKET_BYTES = 64 * 2**10
"""Payload of one SEQPACKET packet: far below the default send buffer of about 208 KiB."""
LENGTH = struct.Struct(">I")
"""What precedes every frame of a stream."""
JOIN_TIMEOUT_S = 5.0
DIAL_TIMEOUT_S = 30.0
PEER_TIMEOUT_S = 10
"""Seconds after which the kernel declares a silent TCP peer dead."""

_LAST, _MORE = b"\0", b"\1"
_RECEIVE_BYTES = 256 * 2**10


class ChannelClosedError(ConnectionError):
    """The peer is gone, or sent what no peer of ours sends."""


class ChannelTimeoutError(TimeoutError):
    """Nothing came, or nothing could be sent, before the deadline."""


class Join(msgspec.Struct, frozen=True, array_like=True):
    """The first frame of a rank that dials rank 0."""

    token: str
    rank: int


class Channel(Protocol):
    """One end of a connection; used by one thread at a time."""

    def send(self, frame: bytes) -> None:
        """Waits while the peer does not read. Raises ChannelClosedError when it is gone."""

    def receive(self, timeout_s: float | None = None) -> bytes:
        """The next frame; waits for ever if `timeout_s` is None.

        Raises:
            ChannelClosedError: the peer is gone and all it sent was received.
            ChannelTimeoutError: no whole frame came in time.
        """

    def poll(self, timeout_s: float | None = None) -> bool:
        """Whether a frame (or the end) comes within `timeout_s`; None waits for ever."""

    def hung_up(self, timeout_s: float = 0.0) -> bool:
        """Whether the peer is gone, or goes within `timeout_s`; safe beside other calls."""

    def close(self) -> None:
        """Hang up; the peer sees the end of file."""


class PacketChannel:
    """Frames over a SEQPACKET socket: one packet each, or several for a large one."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._buffer = bytearray(1 + PACKET_BYTES)
        self._view = memoryview(self._buffer)

    def send(self, frame: bytes) -> None:
        view = memoryview(frame)
        try:
            while len(view) > PACKET_BYTES:
                self._socket.sendmsg((_MORE, view[:PACKET_BYTES]))
                view = view[PACKET_BYTES:]
            self._socket.sendmsg((_LAST, view))
        except OSError as error:
            raise _named(error) from None

    def receive(self, timeout_s: float | None = None) -> bytes:
        deadline = _deadline(timeout_s)
        parts: list[bytes] = []
        received = 0
        while True:
            if deadline is not None and not self.poll(max(0.0, deadline - time.monotonic())):
                raise ChannelTimeoutError(f"no frame within {timeout_s} s")
            size = self._receive_packet()
            part = bytes(self._view[1:size])
            if self._buffer[0] == _LAST[0] and not parts:
                return part
            parts.append(part)
            received += size
            if received > MAX_FRAME_BYTES:
                raise ChannelClosedError("the peer sent too large a frame")
            if self._buffer[0] == _LAST[0]:
                return b"".join(parts)

    def poll(self, timeout_s: float | None = None) -> bool:
        return _poll(self._socket, select.POLLIN, timeout_s)

    def hung_up(self, timeout_s: float = 0.0) -> bool:
        return _poll(self._socket, select.POLLRDHUP, timeout_s)

    def close(self) -> None:
        self._socket.close()

    def _receive_packet(self) -> int:
        try:
            size = self._socket.recv_into(self._buffer)
        except OSError as error:
            raise _named(error) from None
        if size == 0:
            raise ChannelClosedError("the peer is gone")
        return size


class StreamChannel:
    """Frames over a stream socket, each after its length. Sends may come from several threads."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._received = bytearray()
        self._sending = threading.Lock()

    def send(self, frame: bytes) -> None:
        with self._sending:
            try:
                self._socket.sendall(LENGTH.pack(len(frame)) + frame)
            except OSError as error:
                raise _named(error) from None

    def receive(self, timeout_s: float | None = None) -> bytes:
        deadline = _deadline(timeout_s)
        while (frame := cut_frame(self._received)) is None:
            if deadline is not None:
                left = max(0.0, deadline - time.monotonic())
                if not _poll(self._socket, select.POLLIN, left):
                    raise ChannelTimeoutError(f"no frame within {timeout_s} s")
            self._receive_some()
        return frame

    def poll(self, timeout_s: float | None = None) -> bool:
        return bool(self._received) or _poll(self._socket, select.POLLIN, timeout_s)

    def hung_up(self, timeout_s: float = 0.0) -> bool:
        return _poll(self._socket, select.POLLRDHUP, timeout_s)

    def close(self) -> None:
        self._socket.close()

    @property
    def local_host(self) -> str:
        """The address by which this end is known to a TCP peer."""
        return str(self._socket.getsockname()[0])

    def _receive_some(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            raise _named(error) from None
        if not data:
            raise ChannelClosedError("the peer is gone")
        self._received += data


def cut_frame(received: bytearray) -> bytes | None:
    """Takes the first frame out of what a stream brought; None while it is not complete.

    Raises:
        ChannelClosedError: the length is beyond MAX_FRAME_BYTES.
    """
    if len(received) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack_from(received)
    if length > MAX_FRAME_BYTES:
        raise ChannelClosedError("the peer sent too large a frame")
    end = LENGTH.size + length
    if len(received) < end:
        return None
    frame = bytes(memoryview(received)[LENGTH.size : end])
    del received[:end]
    return frame


class Listener:
    """Where the other ranks dial rank 0; hands out authenticated channels."""

    def __init__(self, address: str) -> None:
        """Listen at a `seqpacket://` path, or a `tcp://host:0` address.

        Raises:
            OSError: the address cannot be had.
        """
        url = urlsplit(address)
        if url.scheme == "tcp":
            self._socket = socket.create_server((url.hostname or "", url.port or 0))
            self.address = f"tcp://{url.hostname}:{self._socket.getsockname()[1]}"
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(url.path)
        os.chmod(url.path, 0o600)
        self._socket.listen()
        self.address = address

    def accept(self, token: str, timeout_s: float | None = None) -> tuple[int, Channel]:
        """The next rank that knows the token; whoever does not is hung up on.

        Returns:
            its rank, and the channel to it.

        Raises:
            ChannelTimeoutError: nobody came in time.
        """
        deadline = _deadline(timeout_s)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not _poll(self._socket, select.POLLIN, left):
                raise ChannelTimeoutError(f"no rank came within {timeout_s} s")
            connected = self._socket.accept()[0]
            if connected.family != socket.AF_UNIX:
                tune_tcp(connected)
            channel = _channel(connected)
            try:
                join = msgspec.msgpack.decode(channel.receive(JOIN_TIMEOUT_S), type=Join)
            except (ChannelClosedError, ChannelTimeoutError, msgspec.MsgspecError):
                channel.close()
                continue
            if hmac.compare_digest(join.token.encode(), token.encode()):
                return join.rank, channel
            channel.close()

    def close(self) -> None:
        self._socket.close()


def dial(address: str) -> StreamChannel:
    """Connect to a `unix://` or `tcp://` address.

    Raises:
        ChannelClosedError: nobody listens there.
        ChannelTimeoutError: no connection in time.
    """
    return StreamChannel(_connect(address))


def join(address: str, token: str, rank: int) -> Channel:
    """Connect to rank 0's Listener and say who we are. Raises as `dial` does."""
    channel = _channel(_connect(address))
    channel.send(msgspec.msgpack.encode(Join(token, rank)))
    return channel


def _connect(address: str) -> socket.socket:
    url = urlsplit(address)
    try:
        if url.scheme == "tcp":
            connected = socket.create_connection((url.hostname, url.port), DIAL_TIMEOUT_S)
            tune_tcp(connected)
        else:
            kind = socket.SOCK_STREAM if url.scheme == "unix" else socket.SOCK_SEQPACKET
            connected = socket.socket(socket.AF_UNIX, kind)
            connected.settimeout(DIAL_TIMEOUT_S)
            connected.connect(url.path)
    except OSError as error:
        raise _named(error) from None
    connected.settimeout(None)
    return connected


def _channel(connected: socket.socket) -> Channel:
    packets = connected.type == socket.SOCK_SEQPACKET
    return PacketChannel(connected) if packets else StreamChannel(connected)


def tune_tcp(connected: socket.socket) -> None:
    """Send small frames at once; notice a peer whose machine or network is gone."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PEER_TIMEOUT_S // 2)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PEER_TIMEOUT_S // 2)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TIMEOUT_S * 1000)


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _poll(connected: socket.socket, events: int, timeout_s: float | None) -> bool:
    poller = select.poll()
    poller.register(connected, events)
    return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))


def _named(error: OSError) -> ChannelClosedError | ChannelTimeoutError:
    if isinstance(error, TimeoutError):
        return ChannelTimeoutError("the peer does not answer")
    return ChannelClosedError(f"the peer is gone ({error.strerror or error})")
