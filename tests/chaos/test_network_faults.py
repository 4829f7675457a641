"""A network to Redis that is slow or loses everything."""

import asyncio
import time
from pathlib import Path

import pytest
import structlog

from serve_app.sections import AdmissionSection
from serve_app.tenancy.admission import AdmissionQueue
from serve_app.tenancy.door import Door, DoorSettings
from serve_app.tenancy.keys import CreatedKey
from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.store import Store
from tests.chaos.relay import Relay
from tests.chaos.scene import rounds, scene_in
from tests.serve_app.tenancy.world import World, until

pytestmark = pytest.mark.anyio
TIMEOUT_S = 0.15
CALLERS = 20


async def failed_after(store: Store) -> float:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.run("view")
    return time.monotonic() - began


@pytest.mark.parametrize("deaf", [False, True], ids=["slow", "deaf"])
async def test_the_breaker_opens_soon_and_nobody_waits_for_the_network(
    tmp_path: Path, deaf: bool
) -> None:
    async with (
        scene_in(tmp_path, kv=1000) as scene,
        Relay(scene.server._socket) as relay,
        Store(relay.url, scene.world.pool, timeout_s=TIMEOUT_S) as store,
    ):
        await store.run("view")
        relay.delay_s, relay.deaf = (0.0 if deaf else 0.3), deaf
        with structlog.testing.capture_logs() as told:
            first = await asyncio.gather(*(failed_after(store) for _ in range(CALLERS)))
            then = await failed_after(store)
        print(
            f"\n{'deaf' if deaf else '300 ms each way'}: {CALLERS} calls failed within "
            f"{max(first):.2f} s, the next in {then * 1000:.1f} ms"
        )
        assert max(first) < 3.0  # a busy machine; else a third of a second
        assert then < TIMEOUT_S  # it was not tried
        assert [line["event"] for line in told] == ["redis_away"]
        relay.delay_s, relay.deaf = 0.0, False
        async with asyncio.timeout(20):
            while True:
                try:
                    await store.run("view")
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.05)


async def answered_after(door: Door, world: World, key: CreatedKey) -> float:
    began = time.monotonic()
    await door.identify(key.secret)
    (await door.admit(world.request(key))).settle(prompt_tokens=10, output_tokens=10)
    return time.monotonic() - began


async def test_known_keys_are_answered_without_redis_half_a_second_after_it_went_silent(
    tmp_path: Path,
) -> None:
    async with scene_in(tmp_path, kv=100_000) as scene, Relay(scene.server._socket) as relay:
        world, took = scene.world, []
        key = await world.key()
        timeout_s = AdmissionSection.model_fields["redis_timeout_s"].default
        async with Store(relay.url, world.pool, timeout_s=timeout_s) as store:
            queue = AdmissionQueue(store, world.keys, world.pepper)
            settings = DoorSettings(journal_dir=tmp_path / "journal")
            async with Door(queue, store, world.pepper, settings) as door:
                await answered_after(door, world, key)
                for _ in range(rounds(2)):
                    relay.deaf = True
                    asked = (answered_after(door, world, key) for _ in range(CALLERS))
                    took += await asyncio.gather(*asked)
                    assert door.degraded
                    relay.deaf = False
                    await until(lambda: not door.degraded)
        print(f"\nRedis went silent: requests were answered without it after {max(took):.2f} s")
        assert max(took) < 5.0  # a busy machine; else it is less than half a second


async def test_one_ingress_alone_behind_a_dead_network_stays_within_what_there_is(
    tmp_path: Path,
) -> None:
    async with scene_in(tmp_path, kv=3000) as scene, Relay(scene.server._socket) as relay:
        key = await scene.world.key()
        load = {"secrets": [key.secret], "workers": 10, "lasts_s": 7.0, "most_tokens": 300}
        others = [await scene.ingress(**load) for _ in range(2)]
        alone = await scene.ingress(**load, url=relay.url)
        await asyncio.sleep(1.5)
        relay.deaf = True
        await asyncio.sleep(3.5)  # longer than its lease
        relay.deaf = False
        results = [await ingress.result() for ingress in (*others, alone)]
        await scene.quiet()
        counts = await scene.ledger()
        print(
            f"\none of three cut off: it served {results[2]['alone']} alone; peak KV "
            f"{scene.engine.peak} of 3000; longest {max(r['longest_s'] for r in results)} s"
        )
        assert results[2]["alone"] > 0
        assert scene.engine.peak <= 3000
        assert set(counts.values()) == {1}
        assert max(result["longest_s"] for result in results) < 5.0
