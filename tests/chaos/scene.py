"""Scene: a Redis of its own, an engine, ingress processes under load, and what is left of them."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from serve_app.tenancy.capacity import pool_totals
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.refusals import StoreUnavailable
from tests.chaos.engine import Engine
from tests.chaos.ingress import Plan
from tests.serve_app.tenancy.world import World, until

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "0"))
"""How often each fault strikes; 0: a few times, as in every run of the tests."""


def rounds(usually: int) -> int:
    return ROUNDS or usually


class Ingress:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ready(self) -> None:
        assert self.process.stdout is not None
        assert (await self.process.stdout.readline()).strip() == b"ready"

    async def result(self) -> dict[str, Any]:
        """What it prints at its end."""
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(await self.process.stdout.readline())
        await self.process.wait()
        return found

    def signal(self, what: int) -> None:
        self.process.send_signal(what)


class Scene:
    """One Redis with one pool."""

    def __init__(self, folder: Path, server: RedisServer, world: World, engine: Engine) -> None:
        self.folder, self.server, self.world, self.engine = folder, server, world, engine
        self._ingresses: list[Ingress] = []

    async def ingress(self, **chosen: Any) -> Ingress:
        """A process under load, ready."""
        base = {
            "url": self.server.url,
            "pool": self.world.pool,
            "folder": str(self.folder),
            "engine": str(self.engine.socket),
            "name": f"i{len(self._ingresses)}",
        }
        plan = Plan(**(base | chosen))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.ingress",
            msgspec.json.encode(plan).decode(),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=(self.folder / f"{base['name']}.log").open("wb"),
        )
        ingress = Ingress(process)
        self._ingresses.append(ingress)
        await ingress.ready()
        return ingress

    def redis(self, what: int) -> None:
        assert self.server.pid is not None
        os.kill(self.server.pid, what)

    async def running(self) -> int:
        try:
            return (await pool_totals(self.world.store)).running
        except StoreUnavailable:
            return -1

    async def quiet(self) -> None:
        """Waits until nothing is held any more."""

        async def nothing_held() -> bool:
            totals = await pool_totals(self.world.store)
            return (totals.running, totals.waiting, totals.committed) == (0, 0, 0)

        async with asyncio.timeout(30):
            await until(nothing_held)

    async def ledger(self) -> Counter[str]:
        """How many entries each request has."""
        key = f"{self.world.store.prefix}led"
        rows = await self.world.store.command("XRANGE", key, "-", "+")
        return Counter(row["rid"] for _, row in rows)

    async def end(self) -> None:
        for ingress in self._ingresses:
            with contextlib.suppress(ProcessLookupError):
                ingress.signal(signal.SIGCONT)
                ingress.signal(signal.SIGKILL)
            await ingress.process.wait()


@contextlib.asynccontextmanager
async def scene_in(folder: Path, *, kv: int, slots: int = 1000) -> AsyncIterator[Scene]:
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer(folder / "redis"))
        world = await stack.enter_async_context(World(server.url, folder))
        engine = await stack.enter_async_context(Engine(world.store, folder, kv=kv, slots=slots))
        scene = Scene(folder, server, world, engine)
        try:
            yield scene
        finally:
            scene.redis(signal.SIGCONT)
            await scene.end()
