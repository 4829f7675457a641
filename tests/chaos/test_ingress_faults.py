"""An ingress that is killed, paused, or wrong about the time."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from tests.chaos.scene import rounds, scene_in
from tests.serve_app.tenancy.world import until

pytestmark = pytest.mark.anyio
LEASE_S = 2.0
PATIENT = {"timeout_s": 5.0}
"""A busy machine is not an outage."""
FOR_EVER = {"hold_s": (600.0, 600.0), "most_tokens": 10, "requests": 1, "lasts_s": 600.0}


async def test_a_killed_ingress_gives_its_slots_back_with_its_lease(tmp_path: Path) -> None:
    async with scene_in(tmp_path, kv=100_000) as scene:
        key = await scene.world.key()
        idle = {
            "secrets": [key.secret],
            "workers": 0,
            "lasts_s": 600.0,
            "lease_s": LEASE_S,
        } | PATIENT
        await scene.ingress(**idle)  # somebody must live
        took = []
        for _ in range(rounds(1)):
            await scene.quiet()
            before = await scene.ledger()
            dying = await scene.ingress(**(idle | FOR_EVER | {"workers": 50}))
            await until(lambda: _running(scene, 50))
            dying.signal(signal.SIGKILL)
            killed = time.monotonic()
            await until(lambda: _running(scene, 0))
            took.append(time.monotonic() - killed)
            new = await scene.ledger() - before
            assert len(new) == 50
            assert set(new.values()) == {1}
        print(f"\nkill -9 with 50 streams: slots back after {max(took):.2f} s, lease {LEASE_S} s")
        assert max(took) < LEASE_S + 5.0  # a busy machine; else it is half a second


async def test_what_a_paused_ingress_was_granted_is_not_run_twice(tmp_path: Path) -> None:
    async with scene_in(tmp_path, kv=100_000, slots=10) as scene:
        key = await scene.world.key()
        load = {"secrets": [key.secret], "workers": 15, "lasts_s": 6.0 + 4 * rounds(1)} | PATIENT
        both = [await scene.ingress(**load, lease_s=1.0) for _ in range(2)]
        for _ in range(rounds(1)):
            await asyncio.sleep(0.5)
            both[0].signal(signal.SIGSTOP)
            await asyncio.sleep(2.5)  # its lease is over, its slots are somebody else's
            both[0].signal(signal.SIGCONT)
            await asyncio.sleep(0.5)
        results = [await ingress.result() for ingress in both]
        await scene.quiet()
        counts = await scene.ledger()
        print(f"\npaused past its lease: {scene.engine.started} runs, {scene.engine.double} double")
        assert scene.engine.double == 0
        assert set(counts.values()) == {1}
        assert all(result["outcomes"]["served"] > 0 for result in results)


async def test_an_ingress_whose_clock_is_an_hour_ahead_changes_nothing(tmp_path: Path) -> None:
    async with scene_in(tmp_path, kv=100_000) as scene:
        key = await scene.world.key(rpm=50)
        load = {"secrets": [key.secret], "workers": 10, "requests": 10, "lasts_s": 30.0} | PATIENT
        right = await scene.ingress(**load)
        wrong = await scene.ingress(**load, clock_off_s=3600.0)
        results = [await ingress.result() for ingress in (right, wrong)]
        served = sum(result["outcomes"].get("served", 0) for result in results)
        refused = sum(result["outcomes"].get("RateLimited", 0) for result in results)
        print(f"\nclock + 1 h: {served} of 200 served on a limit of 50")
        assert served + refused == 200
        assert 50 <= served <= 60  # a burst, and one each 1.2 s while it takes


async def _running(scene: object, count: int) -> bool:
    return await scene.running() == count  # type: ignore[attr-defined, no-any-return]
