"""Three ingresses as processes on one Redis: limits stay exact, no death leaks a lease."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from serve_app.tenancy.capacity import pool_totals
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.usage import UsageMeter
from tests.serve_app.tenancy.world import World, until

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with RedisServer(tmp_path / "redis") as server:
        async with World(server.url, tmp_path) as world:
            await world.replica(kv=10**6)
            yield world


@contextlib.asynccontextmanager
async def three_ingresses(world: World, folder: Path) -> AsyncIterator[list[str]]:
    """Their ports."""
    module = (sys.executable, "-m", "tests.chaos.served_ingress")
    processes = [
        subprocess.Popen(
            [*module, world.url, world.pool, str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        outputs = [process.stdout for process in processes]
        yield [(await asyncio.to_thread(output.readline)).strip() for output in outputs if output]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


async def dying_clients(secret: str, count: int, ports: list[str]) -> Any:
    module = ("-m", "tests.chaos.dying_clients")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *module, secret, str(count), *ports, cwd=ROOT, stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(output)


async def nothing_is_held(world: World, key_id: str) -> bool:
    totals = await pool_totals(world.store)
    ingresses = await world.store.command("ZRANGE", f"{world.store.prefix}ls", 0, -1)
    held = [await world.raw("SCARD", f"in:{ingress}") for ingress in ingresses]
    held += [(await world.spent(*scope))["n"] for scope in (("k", key_id), ("t", "acme"))]
    return not (totals.running or totals.waiting or totals.committed or any(held))


async def test_500_at_once_on_a_limit_of_100_are_exactly_100(world: World, tmp_path: Path) -> None:
    at_a_time = await world.key(concurrency=100)
    in_a_burst = await world.key(rpm=1, burst_s=6000)  # another one comes after a minute
    async with three_ingresses(world, tmp_path) as ports:
        for key in (at_a_time, in_a_burst):
            told = await dying_clients(key.secret, 500, ports)
            assert told["statuses"] == {"200": 100, "429": 400}
            await until(partial(nothing_is_held, world, key.key.id))


async def test_500_clients_killed_in_their_streams_are_charged_what_they_were_given(
    world: World, tmp_path: Path
) -> None:
    key = await world.key(tokens_per_day=10**9)
    async with three_ingresses(world, tmp_path) as ports:
        told = await dying_clients(key.secret, 500, ports)
        assert told["statuses"] == {"200": 500}
        await until(partial(nothing_is_held, world, key.key.id))
        meter = UsageMeter(world.store)
        ledger = await meter.ledger()
        used = await meter.of_key(key.key.id)
    assert told["tokens"] == sum(1 + number % 19 for number in range(500))
    assert sum(entry.output_tokens for entry in ledger) == told["tokens"]
    assert (used.requests, used.output_tokens) == (500, told["tokens"])
    assert len({entry.rid for entry in ledger}) == len(ledger) == 500
    assert {entry.how for entry in ledger} == {"abort"}
