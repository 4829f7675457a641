"""What an ingress and a model replica say to each other, and its frames on the wire.

    frame   := uint32 big-endian length, msgpack payload
    first   := Hello(token, replica)
    others  := list[RequestOutput]      an empty list is a heartbeat

Owns the messages and the cutting of a byte stream into frames. Knows no streams and no replicas.
"""

import asyncio
import struct
from typing import cast

import msgspec

from cluster.request import EngineRequest, RequestOutput

MAX_FRAME_BYTES = 16 * 2**20
READ_BYTES = 64 * 2**10

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()


class Hello(msgspec.Struct, array_like=True):
    """The first frame of a connection."""

    token: str
    replica: str


class DeltaAddress(msgspec.Struct, frozen=True, array_like=True):
    """Where a replica sends the deltas of a request, and what proves it may."""

    host: str
    port: int
    token: str


class Submission(msgspec.Struct, frozen=True, array_like=True):
    """What an ingress hands to a model replica: a request's choices, and where deltas go."""

    requests: list[EngineRequest]
    address: DeltaAddress

    def encode(self) -> bytes:
        return _encoder.encode(self)

    @staticmethod
    def decode(data: bytes) -> "Submission":
        """Raises msgspec.DecodeError if `data` is not a submission."""
        return _submission_decoder.decode(data)


def accepted(request_id: str) -> RequestOutput:
    """The empty delta by which a replica says that the engine has taken a request's choices; it
    bears the first one's id."""
    return RequestOutput(request_id)


_submission_decoder = msgspec.msgpack.Decoder(Submission)


def frame(message: Hello | list[RequestOutput]) -> bytes:
    """A message as it travels."""
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class FrameProtocol(asyncio.BufferedProtocol):
    """Cuts a byte stream into frames; subclasses get each payload.

    Reads READ_BYTES at most before all else that is ready gets its turn: whoever sends faster than
    the frames can be worked off must not hold up those who pass them on.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray(READ_BYTES)
        self._filled = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not an isinstance: uvloop's transports are no subclasses of asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled == len(self._buffer):
            self._give_way()
        self._cut()

    def payload_received(self, payload: memoryview) -> None:
        """`payload` is valid during the call."""
        raise AssertionError("a subclass receives payloads")

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _cut(self) -> None:
        start = 0
        with memoryview(self._buffer) as view:
            while self._filled - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(view, start)
                if length > MAX_FRAME_BYTES:
                    return self.close()
                end = start + _LENGTH.size + length
                if end > self._filled:
                    break
                self.payload_received(view[start + _LENGTH.size : end])
                start = end
        rest = self._buffer[start : self._filled]
        if len(rest) == len(self._buffer):  # a frame larger than what is read at once
            self._buffer = bytearray(2 * len(rest))  # the transport may still hold the old one
        self._buffer[: len(rest)] = rest
        self._filled = len(rest)

    def _give_way(self) -> None:
        assert self.transport is not None
        self.transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
