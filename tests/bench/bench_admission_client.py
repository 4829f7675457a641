"""What a call of admission costs an ingress: calls a second on one core, CPU time of each.

One event loop on a core of its own (where there are two) and a real redis-server on another; each
request is ADMIT, and SETTLE when it has its ticket. Printed: medians of rounds, with 32 requests in
flight for the rate and one for the latency, of the scripts alone (store.py) and of whole requests
(admission.py, with waits, tickets and detached settlements).

    python -m tests.bench.bench_admission_client
"""

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from serve_app.tenancy.admission import AdmissionQueue
from serve_app.tenancy.keys import CreatedKey
from serve_app.tenancy.store import Store
from tests.bench.bench_admission import PRICE, server
from tests.serve_app.tenancy.world import World

ROUNDS, REQUESTS, IN_FLIGHT = 7, 1000, 32
HOUR_US = 3_600_000_000
Step = Callable[[], Awaitable[None]]


async def rate(step: Step) -> tuple[float, float]:
    """Requests a second, and microseconds of this process's CPU for each."""
    numbers = iter(range(REQUESTS))

    async def client() -> None:
        for _ in numbers:
            await step()

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    used, took = time.process_time() - cpu, time.perf_counter() - began
    return REQUESTS / took, used * 1e6 / REQUESTS


async def latencies(step: Step) -> list[float]:
    """Microseconds of one request after the other."""
    found = []
    for _ in range(REQUESTS // 4):
        began = time.perf_counter()
        await step()
        found.append((time.perf_counter() - began) * 1e6)
    return found


def scripts_alone(store: Store, ingress: str, key: CreatedKey, ids: Iterator[str]) -> Step:
    times = (HOUR_US, 0, HOUR_US)

    async def step() -> None:
        rid = next(ids)
        asked = (key.key.digest, rid, ingress, 812, 1000, *times, 10_000, "", "m", PRICE, "", -1)
        await store.run("admit", *asked)
        await store.run("settle", rid, "ok", 812, 0, 100, 0)

    return step


def whole_requests(world: World, queue: AdmissionQueue, key: CreatedKey) -> Step:
    async def step() -> None:
        await queue.identify(key.secret)
        ticket = await queue.admit(world.request(key, prompt=812, most=1000))
        await ticket.settle(prompt_tokens=812, output_tokens=100)

    return step


async def measure(url: str, folder: Path) -> None:
    async with World(url, folder) as world:
        key = await world.key("acme", rpm=10**6, tpm=10**8, concurrency=1000)
        await world.replica(kv=2**40, slots=10**6)
        queue = await world.ingress()
        ids = (f"chatcmpl-{number:024x}" for number in itertools.count())
        steps = {
            "scripts alone": scripts_alone(world.store, queue.ingress, key, ids),
            "whole requests": whole_requests(world, queue, key),
        }
        print(
            f"\n{'ADMIT and SETTLE':18}{'calls/s':>9}{'CPU a call':>12}{'p50, one in flight':>20}"
        )
        for name, step in steps.items():
            await rate(step)  # warm
            rounds = [await rate(step) for _ in range(ROUNDS)]
            calls, cpu_us = (statistics.median(values) for values in zip(*rounds, strict=True))
            alone = statistics.median(await latencies(step)) / 2
            print(f"{name:18}{2 * calls:9,.0f}{cpu_us / 2:9.0f} us{alone:17.0f} us")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (running, _):
        asyncio.run(measure(running.url, Path(folder)))


def test_admission_client() -> None:
    main()


if __name__ == "__main__":
    main()
