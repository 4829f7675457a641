"""Engine: a replica that computes nothing and forgets nothing.

It holds the KV tokens of what runs, tells Redis the truth four times a second, and keeps what a
test wants to know: the most that was ever held, and whether a request was started twice.
"""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

from serve_app.tenancy.capacity import CapacityReporter, ReplicaLoad
from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.store import Store

REPORT_S = 0.25


class Engine:
    """Ingresses connect to `socket` and send lines: start, end. Who hangs up is aborted."""

    def __init__(self, store: Store, folder: Path, *, kv: int, slots: int = 1000) -> None:
        self.socket = folder / "engine.sock"
        self._reporter = CapacityReporter(store, "r1")
        self.kv, self._slots = kv, slots
        self.running: dict[str, int] = {}
        self.peak = self.peak_running = self.started = self.double = 0
        self._server: asyncio.Server | None = None
        self._voice: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Engine":
        self._server = await asyncio.start_unix_server(self._serve, self.socket)
        await self._report()
        self._voice = asyncio.create_task(self._report_always())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._voice is not None
        assert self._server is not None
        self._voice.cancel()
        await asyncio.gather(self._voice, return_exceptions=True)
        self._server.close()

    @property
    def held(self) -> int:
        return sum(self.running.values())

    async def _serve(self, lines: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        mine: set[str] = set()
        with contextlib.suppress(OSError):
            async for line in lines:
                self._hear(json.loads(line), mine)
        for rid in mine:
            self.running.pop(rid, None)

    def _hear(self, told: dict[str, Any], mine: set[str]) -> None:
        rid = told["rid"]
        if told["do"] == "end":
            mine.discard(rid)
            self.running.pop(rid, None)
            return
        self.double += rid in self.running
        self.running[rid] = told["kv"]
        mine.add(rid)
        self.started += 1
        self.peak, self.peak_running = max(self.peak, self.held), max(self.peak_running, len(mine))

    async def _report(self) -> None:
        free = max(0, self.kv - self.held)
        load = ReplicaLoad(
            kv_total=self.kv, kv_free=free, max_running=self._slots, running=len(self.running)
        )
        await self._reporter.report(load)

    async def _report_always(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            with contextlib.suppress(StoreUnavailable):
                await self._report()
