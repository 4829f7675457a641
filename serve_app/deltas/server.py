"""DeltaServer: the ingress's end of the delta links.

Owns the listening port, who may connect, and which stream an arriving delta belongs to. Knows no
HTTP and no Ray.
"""

import asyncio
import hmac
import secrets
from collections.abc import Iterable

import msgspec

from cluster.request import RequestOutput
from serve_app.deltas.messages import DeltaAddress, FrameProtocol, Hello
from serve_app.deltas.stream import DeltaStream, ReplicaLostError, Silence

LINK_TIMEOUT_S = 3.0
DOUBT_S = 2.0
"""A loop that itself stood still has yet to read what came meanwhile: it looks again."""

_outputs_decoder = msgspec.msgpack.Decoder(list[RequestOutput])


class _IngressConnection(FrameProtocol):
    """One replica's connection, at the ingress."""

    def __init__(self, server: "DeltaServer") -> None:
        super().__init__()
        self._server = server
        self._replica: str | None = None
        self._silence = Silence(self._doubt)
        self._doubted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._silence.expect(LINK_TIMEOUT_S)

    def payload_received(self, payload: memoryview) -> None:
        try:
            if self._replica is None:
                self._greet(msgspec.msgpack.decode(payload, type=Hello))
            else:
                self._server.deliver(_outputs_decoder.decode(payload), self)
        except msgspec.MsgspecError:
            return self.close()
        self._doubted = False
        self._silence.expect(LINK_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._silence.end()
        self._server.lose(self)

    def _doubt(self) -> None:
        if self._doubted:
            return self.close()
        self._doubted = True
        self._silence.expect(DOUBT_S)

    def _greet(self, hello: Hello) -> None:
        if not hmac.compare_digest(hello.token.encode(), self._server.token.encode()):
            return self.close()
        self._replica = hello.replica


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

    def open(self, request_ids: Iterable[str]) -> DeltaStream:
        """One stream for the deltas of all `request_ids`; close it in every case."""
        stream = DeltaStream(request_ids)
        self._streams.update(dict.fromkeys(stream.request_ids, stream))
        return stream

    def close_stream(self, stream: DeltaStream) -> None:
        stream.close()
        for request_id in stream.request_ids:
            self._streams.pop(request_id, None)

    def deliver(self, outputs: list[RequestOutput], peer: object) -> None:
        streams = self._streams
        for output in outputs:
            stream = streams.get(output.request_id)
            if stream is not None:
                stream.push(output, peer)

    def lose(self, peer: object) -> None:
        for stream in self._streams.values():
            if stream.peer is peer:
                stream.fail(ReplicaLostError())

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
