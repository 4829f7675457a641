"""Admission under load: what it adds where nobody waits, and what it keeps where too many ask.

One ingress and a real redis-server share this machine with the clients; the engine is paced.

    L1  50 requests/s of five tenants, room for all          added latency
    L2  200/s on room for 60                                 goodput, how true predicted waits are
    L3  600/s on room for 60, then 30/s                      goodput, how soon the queue is empty
    L4, L5  a full queue, many tenants: bench_admission.py
    L6  one polite tenant beside one that asks 100 x as much     the polite one's waits
    L7  outputs of 32,768 tokens beside outputs of 100       KV cache in use, preemptions

    make bench, or: python -m pytest tests/bench/bench_admission_load.py --capture=no
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve_app.tenancy.admission import AdmissionQueue
from serve_app.tenancy.admit_reply import QueuePlace
from serve_app.tenancy.capacity import pool_totals
from serve_app.tenancy.keys import CreatedKey
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.refusals import Refusal
from serve_app.tenancy.session import SessionSettings
from tests.bench.paced_engine import PacedEngine
from tests.serve_app.tenancy.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]
SERVICE_S, ROOM = 0.2, 60
"""Mean time of a request where there is room for so many a second."""
PROMPT, TOKENS, PACE = 20, 20, 100.0
PATIENCE_S = 2.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Bench:
    """An ingress under an open load: arrivals do not wait for answers."""

    def __init__(self, world: World, queue: AdmissionQueue, engine: PacedEngine) -> None:
        self.world, self.queue, self.engine = world, queue, engine
        self.outcomes: Counter[str] = Counter()
        self.served_at: list[float] = []
        self.waits: dict[str, list[float]] = {}
        self.patience_s = PATIENCE_S
        self.errors: list[float] = []
        """Of predicted waits, as parts of the real ones."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def offer(
        self,
        key: CreatedKey,
        rate: float,
        lasts_s: float,
        *,
        most: int = TOKENS,
        least: int = TOKENS,
    ) -> None:
        """Requests at `rate` a second, as they come: exponential gaps."""
        ends_at = time.monotonic() + lasts_s
        while (now := time.monotonic()) < ends_at:
            task = asyncio.create_task(self._one(key, most, random.randint(least, most)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            gap = random.expovariate(rate)
            await asyncio.sleep(max(0.0, now + gap - time.monotonic()))

    async def done(self) -> None:
        await asyncio.gather(*self._tasks)

    async def _one(self, key: CreatedKey, most: int, output: int) -> None:
        places: list[QueuePlace] = []
        began = time.monotonic()
        request = self.world.request(key, prompt=PROMPT, most=most, deadline_s=self.patience_s)
        try:
            await self.queue.identify(key.secret)
            ticket = await self.queue.admit(request, places.append)
        except Refusal as refusal:
            self.outcomes[type(refusal).__name__] += 1
            return
        waited = time.monotonic() - began
        self.outcomes["served"] += 1
        self.waits.setdefault(key.key.tenant, []).append(waited)
        if places and places[0].eta_s:
            self.errors.append(abs(places[0].eta_s - waited) / waited)
        await self.engine.generate(PROMPT, output)
        ticket.settle(prompt_tokens=PROMPT, output_tokens=output)
        self.served_at.append(time.monotonic())


@contextlib.asynccontextmanager
async def bench(
    folder: Path, *, kv: int = 10**7, slots: int = 10_000, pace: float = PACE
) -> AsyncIterator[Bench]:
    with RedisServer(folder / "redis") as server:
        async with (
            World(server.url, folder) as world,
            PacedEngine(world.store, kv=kv, slots=slots, pace=pace).reporting() as engine,
        ):
            queue = await world.ingress(session=SessionSettings(), max_queued=5000)
            yield Bench(world, queue, engine)


async def test_l1_what_admission_adds_where_nobody_waits(tmp_path: Path) -> None:
    async with bench(tmp_path) as run:
        keys = [await run.world.key(f"t{number}", rpm=6000, tpm=10**6) for number in range(5)]
        await asyncio.gather(*(run.offer(key, 10, 10.0) for key in keys))
        await run.done()
        added = [1000 * wait for waits in run.waits.values() for wait in waits]
        print(
            f"\nL1  50/s, 5 tenants: {told(run.outcomes)}; added p50 {at(added, 0.5):.2f} ms, "
            f"p99 {at(added, 0.99):.2f} ms"
        )


async def test_l2_more_than_three_times_what_there_is_room_for(tmp_path: Path) -> None:
    async with bench(tmp_path, slots=round(ROOM * SERVICE_S)) as run:
        keys = [await run.world.key(f"t{number}") for number in range(5)]
        began = time.monotonic()
        await asyncio.gather(*(run.offer(key, 40, 15.0) for key in keys))
        await run.done()
        print(
            f"L2  200/s on {ROOM}/s: {told(run.outcomes)}; goodput "
            f"{goodput(run, began + 2, began + 15):.0%} of capacity; predicted waits are off by "
            f"{at(run.errors, 0.5):.0%} at p50"
        )


async def test_l3_ten_times_too_many_and_then_half(tmp_path: Path) -> None:
    async with bench(tmp_path, slots=round(ROOM * SERVICE_S)) as run:
        keys = [await run.world.key(f"t{number}") for number in range(5)]
        began = time.monotonic()
        await asyncio.gather(*(run.offer(key, 120, 15.0) for key in keys))
        ended = time.monotonic()
        later = asyncio.gather(*(run.offer(key, 6, 8.0) for key in keys))
        while (await pool_totals(run.world.store)).waiting:
            await asyncio.sleep(0.01)
        empty_s = time.monotonic() - ended
        await later
        await run.done()
        print(
            f"L3  600/s for 15 s, then 30/s: {told(run.outcomes)}; goodput "
            f"{goodput(run, began + 2, began + 15):.0%}; queue empty {empty_s:.2f} s after "
            f"(waits of {PATIENCE_S:.0f} s were allowed)"
        )


async def test_l6_a_polite_tenant_beside_one_that_asks_a_hundred_times_as_much(
    tmp_path: Path,
) -> None:
    alone: list[float] = []
    beside: list[float] = []
    for noisy, waits in ((False, alone), (True, beside)):
        async with bench(tmp_path / str(noisy), slots=round(ROOM * SERVICE_S)) as run:
            polite, loud = await run.world.key("polite"), await run.world.key("loud")
            loads = [run.offer(polite, 5, 20.0)]
            if noisy:
                loads.append(run.offer(loud, 500, 20.0))
            await asyncio.gather(*loads)
            await run.done()
            waits += run.waits["polite"]
    bound = 1.2 * at(alone, 0.99) + SERVICE_S
    print(
        f"L6  5/s beside 500/s: p99 wait {1000 * at(beside, 0.99):.0f} ms, alone "
        f"{1000 * at(alone, 0.99):.0f} ms; 1.2 x alone + one service time is {1000 * bound:.0f} ms"
    )


async def test_l7_very_long_outputs_beside_short_ones(tmp_path: Path) -> None:
    async with bench(tmp_path, kv=262_144, slots=256, pace=4096.0) as run:
        run.patience_s = 30.0
        short, long = await run.world.key("short"), await run.world.key("long")
        await asyncio.gather(
            run.offer(short, 40, 40.0, most=100, least=20),
            run.offer(long, 8, 40.0, most=32_768, least=4_096),
        )
        fill = run.engine.mean_fill(60)  # the first 15 s teach how long outputs are
        await run.done()
        share = run.engine.preemptions / max(1, run.engine.finished)
        print(
            f"L7  32,768 beside 100 tokens: {told(run.outcomes)}; KV in use {fill:.0%}, "
            f"{run.engine.preemptions} preemptions = {share:.1%} of requests"
        )


def at(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def goodput(run: Bench, start: float, end: float) -> float:
    """Requests served between two moments, as a part of what there is room for."""
    served = sum(start <= moment < end for moment in run.served_at)
    return served / (end - start) / ROOM


def told(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
