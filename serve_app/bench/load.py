"""A load of streamed requests on a server: so many at a time, all at once, or so many a second.

Owns when each request starts. Knows no figures.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from serve_app.bench.http_stream import Reply

Send = Callable[[], Awaitable[Reply]]


class Arrivals(NamedTuple):
    """How requests come."""

    requests: int
    concurrency: int = 32
    """Most in flight."""
    rate: float | Literal["burst"] | None = None
    """Requests a second, as a Poisson process; `burst`: all at once; None: the next one when one
    ends."""
    seed: int = 0


async def replies(arrivals: Arrivals, send: Send) -> list[Reply]:
    """Every request's reply, in the order of their starts."""
    if isinstance(arrivals.rate, float):
        return await _at_rate(arrivals, arrivals.rate, send)
    in_flight = arrivals.requests if arrivals.rate == "burst" else arrivals.concurrency
    return await _closed_loop(arrivals.requests, in_flight, send)


async def _closed_loop(requests: int, concurrency: int, send: Send) -> list[Reply]:
    found: list[Reply | None] = [None] * requests
    places = iter(range(requests))

    async def client() -> None:
        for place in places:
            found[place] = await send()

    async with asyncio.TaskGroup() as clients:
        for _ in range(min(concurrency, requests)):
            clients.create_task(client())
    return [reply for reply in found if reply is not None]


async def _at_rate(arrivals: Arrivals, rate: float, send: Send) -> list[Reply]:
    gaps = random.Random(arrivals.seed)
    room = asyncio.Semaphore(arrivals.concurrency)

    async def one() -> Reply:
        async with room:
            return await send()

    async with asyncio.TaskGroup() as group:
        tasks = []
        for _ in range(arrivals.requests):
            tasks.append(group.create_task(one()))
            await asyncio.sleep(gaps.expovariate(rate))
    return [task.result() for task in tasks]
