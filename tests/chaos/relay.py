"""Relay: a TCP port before Redis that is as slow, or as deaf, as a test wants."""

import asyncio
import contextlib
from pathlib import Path


class Relay:
    """Passes bytes on after `delay_s`; none while `deaf`."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.delay_s = 0.0
        self.deaf = False
        self.url = ""
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _serve(self, asked: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        told, forth = await asyncio.open_unix_connection(self._socket)
        for source, target in ((asked, forth), (told, back)):
            pipe = asyncio.create_task(self._pipe(source, target))
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)

    async def _pipe(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await asyncio.sleep(self.delay_s)
                if not self.deaf:
                    target.write(data)
        target.close()
