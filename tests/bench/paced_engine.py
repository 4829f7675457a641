"""PacedEngine: a replica whose requests take the time and the KV cache that a test gives them.

A running request holds its prompt and what it has produced so far, at a steady pace. The truth is
told to Redis four times a second; where more is held than there is, the youngest are preempted:
they give their blocks back and begin anew.
"""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator

from serve_app.tenancy.capacity import CapacityReporter, ReplicaLoad
from serve_app.tenancy.store import Store

REPORT_S = 0.25


class _Run:
    def __init__(self, prompt: int) -> None:
        self.prompt, self.began = prompt, time.monotonic()


class PacedEngine:
    """`pace`: tokens a second of each request."""

    def __init__(self, store: Store, *, kv: int, slots: int, pace: float) -> None:
        self._reporter = CapacityReporter(store, "r1")
        self._kv, self._slots, self._pace = kv, slots, pace
        self._runs: list[_Run] = []
        self.preemptions = self.finished = 0
        self._fills: list[float] = []

    @contextlib.asynccontextmanager
    async def reporting(self) -> AsyncIterator["PacedEngine"]:
        await self._report()
        voice = asyncio.create_task(self._report_always())
        try:
            yield self
        finally:
            voice.cancel()
            await asyncio.gather(voice, return_exceptions=True)

    async def generate(self, prompt: int, output: int) -> None:
        """Returns when `output` tokens are there."""
        run = _Run(prompt)
        self._runs.append(run)
        try:
            while (left := output - self._produced(run)) > 0:
                await asyncio.sleep(left / self._pace)
        finally:
            self._runs.remove(run)
            self.finished += 1

    def mean_fill(self, after: int) -> float:
        """Of the KV cache, over all reports but the first `after`; from 0 to 1."""
        return statistics.mean(self._fills[after:])

    def _produced(self, run: _Run) -> int:
        return int((time.monotonic() - run.began) * self._pace)

    def _held(self) -> int:
        held = sum(run.prompt + self._produced(run) for run in self._runs)
        for run in reversed(self._runs):
            if held <= self._kv:
                break
            held -= self._produced(run)
            run.began = time.monotonic()
            self.preemptions += 1
        return held

    async def _report(self) -> None:
        held = self._held()
        self._fills.append(held / self._kv)
        running = len(self._runs)
        load = ReplicaLoad(
            kv_total=self._kv, kv_free=self._kv - held, max_running=self._slots, running=running
        )
        await self._reporter.report(load)

    async def _report_always(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            await self._report()
