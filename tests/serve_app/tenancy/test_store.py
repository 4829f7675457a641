import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.store import STABLE_KEYS, Store, StoreError, scripts
from tests.serve_app.tenancy.world import World

pytestmark = pytest.mark.anyio


class SlowProxy:
    """A TCP door to Redis that can be told to hold answers back."""

    def __init__(self, path: str) -> None:
        self._path, self.delay_s = path, 0.0

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, out = await asyncio.open_unix_connection(self._path)
        await asyncio.gather(self._pump(reader, out, False), self._pump(back, writer, True))

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, slow: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if slow:
                    await asyncio.sleep(self.delay_s)
                sink.write(data)
        sink.close()


async def test_every_script_is_composed_of_its_parts_and_one_tag(world: World) -> None:
    assert len(scripts()) >= 12
    for script in scripts().values():
        assert "local P = string.sub(KEYS[1]" in script.text
        assert "SCRIPT" not in script.text
    assert all((world.store.prefix + key).count("{") == 1 for key in STABLE_KEYS)


async def test_scripts_are_sent_again_after_redis_forgot_them(world: World) -> None:
    for _ in range(2):
        await world.store.run("tick", 0)
        await world.store.command("SCRIPT", "FLUSH")
    await world.store.run("tick", 0)


async def test_fault_of_a_command_is_not_an_outage(world: World) -> None:
    with pytest.raises(StoreError):
        await world.store.command("HGET", "too", "few", "or", "many")
    await world.store.run("tick", 0)


async def test_missing_redis_is_unavailable_at_once(tmp_path: Path) -> None:
    async with Store(f"unix://{tmp_path}/none.sock") as store:
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await store.run("tick", 0)
        assert time.monotonic() - began < 5


async def test_hung_redis_is_unavailable_soon(redis_server: RedisServer) -> None:
    proxy = SlowProxy(redis_server.url.removeprefix("unix://"))
    async with proxy.serve() as url, Store(url, "hung", timeout_s=0.5) as store:
        await store.run("tick", 0)
        proxy.delay_s = 60
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.run("tick", 0)
        assert time.monotonic() - began < 10  # far less than the 60 s of its silence
        proxy.delay_s = 0


async def test_store_comes_back_by_itself(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with Store(server.url) as store:
            await store.command("SET", "key", "value")
            assert server._process is not None
            server._process.kill()
            server._process.wait()
            with pytest.raises(StoreUnavailable):
                await store.command("GET", "key")
            server.ensure()
            await asyncio.sleep(0.3)  # the breaker's moment
            assert await store.command("GET", "key") in ("value", None)


async def test_answers_are_never_mixed_up_by_cancelled_callers(redis_server: RedisServer) -> None:
    proxy = SlowProxy(redis_server.url.removeprefix("unix://"))
    async with proxy.serve() as url, Store(url, "mixed", connections=3, timeout_s=1) as store:
        for number in range(50):
            await store.command("SET", f"mixed:{number}", number)
        proxy.delay_s = 0.002

        async def read(number: int, patience_s: float) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    assert await store.command("GET", f"mixed:{number}") == str(number)

        await asyncio.gather(*(read(n % 50, 0.001 * (n % 20)) for n in range(200)))
        for number in range(50):
            assert await store.command("GET", f"mixed:{number}") == str(number)


async def test_full_redis_refuses_new_work_but_settles_the_old(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "data") as server:
        async with World(server.url, tmp_path) as world:
            key, _ = await world.key(), await world.replica()
            queue = await world.ingress()
            ticket = await queue.admit(world.request(key))
            await world.store.command("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises(StoreUnavailable):
                await queue.admit(world.request(key))
            await ticket.settle(prompt_tokens=1, output_tokens=1)
            assert await world.raw("EXISTS", f"req:{ticket.rid}") == 0
            await world.store.command("CONFIG", "SET", "maxmemory", 10**8)
