"""The multiplexed token stream from model replicas to an ingress.

One TCP connection per (ingress, model replica) carries the deltas of all their requests, one frame
per engine step. The replica dials the address that came with a submission and proves itself by the
ingress's random token; nobody else gets a byte in.

    frame   := uint32 big-endian length, msgpack payload
    first   := Hello(token, replica)
    others  := list[RequestOutput]      an empty list is a heartbeat

The end of a stream rides in its last RequestOutput. End of file, or silence for LINK_TIMEOUT_S,
fails every stream that the connection was feeding. Knows no HTTP, no Ray and no tenants.
"""

import asyncio
import hmac
import itertools
import secrets
import struct
from collections.abc import Callable, Iterable
from typing import cast

import msgspec

from cluster.request import EngineRequest, RequestOutput

HEARTBEAT_S = 1.0
LINK_TIMEOUT_S = 5.0
MAX_FRAME_BYTES = 16 * 2**20
MAX_UNSENT_BYTES = 64 * 2**20

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()
_outputs_decoder = msgspec.msgpack.Decoder(list[RequestOutput])


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
    """What an ingress hands to a model replica: a request, and where its deltas go."""

    request: EngineRequest
    address: DeltaAddress

    def encode(self) -> bytes:
        return _encoder.encode(self)

    @staticmethod
    def decode(data: bytes) -> "Submission":
        """Raises msgspec.DecodeError if `data` is not a submission."""
        return _submission_decoder.decode(data)


def accepted(request_id: str) -> RequestOutput:
    """The empty delta by which a replica says that the engine has taken a request."""
    return RequestOutput(request_id)


class ReplicaLostError(Exception):
    """The replica that fed this stream is gone."""


_submission_decoder = msgspec.msgpack.Decoder(Submission)


def _frame(message: object) -> bytes:
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class DeltaStream:
    """The deltas of one request, as they arrive; read by one task."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.peer: object | None = None
        self._pending: list[RequestOutput] = []
        self._wakeup = asyncio.Event()
        self._error: Exception | None = None

    def push(self, output: RequestOutput, peer: object) -> None:
        self.peer = peer
        self._pending.append(output)
        self._wakeup.set()

    def fail(self, error: Exception) -> None:
        """Make `take` raise once everything that arrived before was taken."""
        self._error = self._error or error
        self._wakeup.set()

    async def take(self, timeout_s: float | None = None) -> list[RequestOutput]:
        """All deltas that arrived since the last call; none if `timeout_s` passed without any.

        Raises:
            Exception: what `fail` was given, e.g. ReplicaLostError.
        """
        while not self._pending:
            if self._error is not None:
                raise self._error
            self._wakeup.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wakeup.wait()
            except TimeoutError:
                return []
        taken, self._pending = self._pending, []
        return taken


class _Frames(asyncio.Protocol):
    """Cuts a byte stream into frames; subclasses get each payload."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not an isinstance: uvloop's transports are no subclasses of asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                return self.close()
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            self.payload_received(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]

    def payload_received(self, payload: bytes) -> None:
        raise AssertionError("a subclass receives payloads")

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _IngressConnection(_Frames):
    """One replica's connection, at the ingress."""

    def __init__(self, server: "DeltaServer") -> None:
        super().__init__()
        self._server = server
        self._replica: str | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._extend_deadline()

    def payload_received(self, payload: bytes) -> None:
        try:
            if self._replica is None:
                self._greet(msgspec.msgpack.decode(payload, type=Hello))
            else:
                self._server.deliver(_outputs_decoder.decode(payload), self)
        except msgspec.MsgspecError:
            return self.close()
        self._extend_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._server.lose(self)

    def _greet(self, hello: Hello) -> None:
        if not hmac.compare_digest(hello.token.encode(), self._server.token.encode()):
            return self.close()
        self._replica = hello.replica

    def _extend_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(LINK_TIMEOUT_S, self.close)


class DeltaServer:
    """The ingress's end: one listening port, any number of replicas, one stream per request."""

    def __init__(self, host: str, ports: Iterable[int]) -> None:
        self.token = secrets.token_hex(16)
        self._host = host
        self._ports = ports
        self._streams: dict[str, DeltaStream] = {}
        self._server: asyncio.Server | None = None
        self._address: DeltaAddress | None = None

    async def start(self) -> None:
        """Listen on the first free port.

        Raises:
            OSError: no port of the range is free; the message names the setting.
        """
        loop = asyncio.get_running_loop()
        for port in self._ports:
            try:
                self._server = await loop.create_server(
                    lambda: _IngressConnection(self), self._host, port
                )
            except OSError:
                continue
            self._address = DeltaAddress(self._host, port, self.token)
            return
        raise OSError("no free port for deltas; widen deltas.min_port … deltas.max_port")

    @property
    def address(self) -> DeltaAddress:
        assert self._address is not None, "start() first"
        return self._address

    def open(self, request_id: str) -> DeltaStream:
        """A stream for the deltas of `request_id`; close it in every case."""
        stream = self._streams[request_id] = DeltaStream(request_id)
        return stream

    def close_stream(self, stream: DeltaStream) -> None:
        self._streams.pop(stream.request_id, None)

    def deliver(self, outputs: list[RequestOutput], peer: object) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.push(output, peer)

    def lose(self, peer: object) -> None:
        for stream in self._streams.values():
            if stream.peer is peer:
                stream.fail(ReplicaLostError())

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()


class _ReplicaConnection(_Frames):
    """One ingress's connection, at the replica. Nothing is ever received on it."""

    def __init__(self, lost: Callable[[], None]) -> None:
        super().__init__()
        self._lost = lost

    def payload_received(self, payload: bytes) -> None:
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()


class DeltaLinks:
    """The replica's end: a connection per ingress that has requests here.

    `on_lost(address)` is called once when an ingress is gone, so that its requests can be aborted.
    """

    def __init__(self, replica: str, on_lost: Callable[[DeltaAddress], None]) -> None:
        self._replica = replica
        self._on_lost = on_lost
        self._links: dict[DeltaAddress, _ReplicaConnection] = {}
        self._dialling: dict[DeltaAddress, asyncio.Task[None]] = {}
        self._heartbeat: asyncio.Task[None] | None = None

    async def connect(self, address: DeltaAddress) -> None:
        """Make sure there is a connection to `address`.

        Raises:
            OSError: the ingress cannot be reached.
        """
        if address in self._links:
            return
        task = self._dialling.get(address)
        if task is None:
            task = self._dialling[address] = asyncio.create_task(self._dial(address))
            task.add_done_callback(lambda _: self._dialling.pop(address, None))
        await asyncio.shield(task)

    def send(self, address: DeltaAddress, outputs: list[RequestOutput]) -> None:
        """Queue one frame; never waits. A link that is gone drops it: its requests are aborted."""
        link = self._links.get(address)
        if link is None or link.transport is None:
            return
        if link.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            return link.close()
        link.transport.write(_frame(outputs))

    async def close(self) -> None:
        """Flush what is queued and hang up."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        for link in list(self._links.values()):
            if link.transport is not None:
                link.transport.close()

    async def _dial(self, address: DeltaAddress) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(LINK_TIMEOUT_S):
            transport, link = await loop.create_connection(
                lambda: _ReplicaConnection(lambda: self._drop(address)), address.host, address.port
            )
        transport.write(_frame(Hello(address.token, self._replica)))
        if transport.is_closing():
            raise ConnectionResetError("the ingress hung up at once")
        self._links[address] = link
        if self._heartbeat is None:
            self._heartbeat = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        for _ in itertools.count():
            await asyncio.sleep(HEARTBEAT_S)
            for address in list(self._links):
                self.send(address, [])

    def _drop(self, address: DeltaAddress) -> None:
        if self._links.pop(address, None) is not None:
            self._on_lost(address)
