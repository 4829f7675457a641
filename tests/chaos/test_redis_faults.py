"""A Redis that is killed, stopped and emptied under load."""

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.chaos.scene import ROUNDS, Scene, rounds, scene_in

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]
KV = 3_000
INGRESSES = 3
STOP_S = 10.0 if ROUNDS else 3.0


async def killed(scene: Scene) -> None:
    """With its data: a crash loses a second of them at most."""
    scene.redis(signal.SIGKILL)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(scene.server.ensure)
    await asyncio.sleep(1.2)


async def stopped(scene: Scene) -> None:
    scene.redis(signal.SIGSTOP)
    await asyncio.sleep(STOP_S)
    scene.redis(signal.SIGCONT)
    await asyncio.sleep(1.5)


async def emptied(scene: Scene) -> None:
    await scene.world.store.command("FLUSHALL")
    await asyncio.sleep(2.0)


@pytest.mark.parametrize(
    ("fault", "usually", "lasts_s"),
    [(killed, 3, 2.0), (stopped, 1, STOP_S + 2.0), (emptied, 2, 2.5)],
    ids=["killed", "stopped", "emptied"],
)
async def test_redis_breaks_under_load_and_nothing_hangs_overflows_or_counts_twice(
    tmp_path: Path, fault: Callable[[Scene], Awaitable[None]], usually: int, lasts_s: float
) -> None:
    async with scene_in(tmp_path, kv=KV) as scene:
        keys = [await scene.world.key(tenant) for tenant in ("acme", "bolt", "coal")]
        load = {
            "secrets": [key.secret for key in keys],
            "workers": 12,
            "lasts_s": 2.0 + rounds(usually) * lasts_s,
            "most_tokens": 300,
        }
        ingresses = [await scene.ingress(**load) for _ in range(INGRESSES)]
        await asyncio.sleep(1.0)
        for _ in range(rounds(usually)):
            await fault(scene)
        results = [await ingress.result() for ingress in ingresses]
        await scene.quiet()
        counts, outcomes = await scene.ledger(), Counter[str]()
        for result in results:
            outcomes.update(result["outcomes"])
        longest = max(result["longest_s"] for result in results)
        print(
            f"\n{fault.__name__} {rounds(usually)} x: {dict(outcomes)}, "
            f"{sum(result['alone'] for result in results)} of them alone; longest {longest} s; "
            f"peak KV {scene.engine.peak} of {KV}; {len(counts)} in the ledger"
        )
        assert longest < 5.0
        assert scene.engine.peak <= KV
        assert scene.engine.double == 0
        assert set(counts.values()) == {1}
        assert outcomes["served"] > 100
        assert outcomes["Unauthorized"] == 0
        assert all(result["journal_bytes"] == 0 for result in results)
        queue = await scene.world.ingress()
        for key in keys:
            assert (await queue.identify(key.secret)).key_id == key.key.id
