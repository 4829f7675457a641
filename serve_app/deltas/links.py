"""DeltaLinks: the model replica's end of the delta links.

Owns one connection for every ingress that has requests here, its heartbeat and its loss. Knows no
engine and no Ray.
"""

import asyncio
import itertools
from collections.abc import Callable

from cluster.request import RequestOutput
from serve_app.deltas.messages import DeltaAddress, FrameProtocol, Hello, frame

DIAL_TIMEOUT_S = 5.0
HEARTBEAT_S = 1.0
MAX_UNSENT_BYTES = 64 * 2**20


class _ReplicaConnection(FrameProtocol):
    """One ingress's connection, at the replica. Nothing is ever received on it."""

    def __init__(self, lost: Callable[[], None]) -> None:
        super().__init__()
        self._lost = lost

    def payload_received(self, payload: memoryview) -> None:
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
        link.transport.write(frame(outputs))

    async def close(self) -> None:
        """Flush what is queued and hang up."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        for link in list(self._links.values()):
            if link.transport is not None:
                link.transport.close()

    async def _dial(self, address: DeltaAddress) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            transport, link = await loop.create_connection(
                lambda: _ReplicaConnection(lambda: self._drop(address)), address.host, address.port
            )
        transport.write(frame(Hello(address.token, self._replica)))
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
