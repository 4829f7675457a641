"""Admission with Redis, without it, and on the way between, on a real server that is taken away."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from serve_app.tenancy.admission import AdmissionQueue, AdmissionSettings
from serve_app.tenancy.capacity import pool_totals
from serve_app.tenancy.door import LOOK_S, Door, DoorSettings
from serve_app.tenancy.keys import CreatedKey
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.refusals import (
    Overloaded,
    QuotaExhausted,
    RateLimited,
    StoreUnavailable,
    Unauthorized,
)
from serve_app.tenancy.store import Store
from serve_app.tenancy.ticket import Ticket
from tests.serve_app.tenancy.world import QUICK, World, until

pytestmark = pytest.mark.anyio


class Scene:
    """A world on a server of its own, and doors to it."""

    def __init__(self, server: RedisServer, world: World, folder: Path) -> None:
        self.server, self.world, self.folder = server, world, folder

    async def door(self, **settings: Any) -> Door:
        away = DoorSettings(**({"journal_dir": self.folder / "journal"} | settings))
        store = await self.world._stack.enter_async_context(Store(self.world.url, self.world.pool))
        queue = AdmissionQueue(
            store, self.world.keys, self.world.pepper, AdmissionSettings(session=QUICK)
        )
        door = Door(queue, store, self.world.pepper, away)
        return await self.world._stack.enter_async_context(door)

    def hang(self) -> None:
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGCONT)

    async def ledger(self) -> list[dict[str, str]]:
        key = f"{self.world.store.prefix}led"
        return [fields for _, fields in await self.world.store.command("XRANGE", key, "-", "+")]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    with RedisServer(tmp_path / "redis") as server:
        async with World(server.url, tmp_path) as world:
            scene = Scene(server, world, tmp_path)
            yield scene
            scene.resume()


async def used(ticket: Ticket, *, prompt: int = 10, output: int = 3) -> None:
    await ticket.settle(prompt_tokens=prompt, output_tokens=output)


async def known_key(scene: Scene, door: Door, **limits: Any) -> CreatedKey:
    """A key that Redis has vouched for at this door."""
    key = await scene.world.key(**limits)
    await door.identify(key.secret)
    return key


async def test_known_keys_are_served_without_redis_and_told_to_it_afterwards(scene: Scene) -> None:
    await scene.world.replica()
    door = await scene.door()
    key, stranger = await known_key(scene, door), await scene.world.key()
    before = await door.admit(scene.world.request(key))
    with structlog.testing.capture_logs() as told:
        scene.hang()
        alone = await door.admit(scene.world.request(key))
        assert door.degraded
        assert door.replicas_alone() == 1
        assert (await door.identify(key.secret)).key_id == key.key.id
        with pytest.raises(StoreUnavailable):
            await door.identify(stranger.secret)
        still_running = await door.admit(scene.world.request(key))
        await used(alone, output=3)
        await used(alone, output=100)  # only the first call counts
        assert door.journal_bytes > 0
        assert door.admitted_alone == 2
        scene.resume()
        await until(lambda: not door.degraded)
    assert [line["event"] for line in told if line["event"].startswith("admission_")] == [
        "admission_degraded",
        "admission_restored",
    ]
    await until(lambda: door.journal_bytes == 0)
    assert door.replicas_alone() == 0

    async def both_run() -> bool:
        return (await pool_totals(scene.world.store)).running == 2

    await until(both_run)  # RESTORE: Redis counts what was let in without it
    await used(still_running)
    await used(before)

    paid = {before.rid, alone.rid, still_running.rid}

    async def written() -> bool:
        return paid <= {row["rid"] for row in await scene.ledger()}

    await until(written)
    rows = await scene.ledger()
    assert len({row["rid"] for row in rows}) == len(rows)
    for row in rows:  # others were admitted without an answer, and cancelled
        assert (row["in"], row["out"]) == (("10", "3") if row["rid"] in paid else ("0", "0"))
    totals = await pool_totals(scene.world.store)
    assert (totals.running, totals.committed) == (0, 0)


async def test_a_replica_younger_than_the_last_look_is_known_when_it_has_served(
    scene: Scene,
) -> None:
    door = await scene.door()
    key = await known_key(scene, door)
    await scene.world.replica()
    await used(await door.admit(scene.world.request(key)))
    await asyncio.sleep(LOOK_S / 4)
    scene.hang()
    await used(await door.admit(scene.world.request(key)))
    assert door.admitted_alone == 1


async def test_what_was_used_alone_counts_against_the_limits_of_the_key(scene: Scene) -> None:
    await scene.world.replica()
    door = await scene.door()
    key = await known_key(scene, door, tpm=1000)
    scene.hang()
    await used(
        await door.admit(scene.world.request(key, prompt=300, most=200)), prompt=300, output=150
    )
    scene.resume()
    await until(lambda: not door.degraded and not door.journal_bytes)
    with pytest.raises(RateLimited):
        await door.admit(scene.world.request(key, prompt=400, most=200))
    await door.admit(scene.world.request(key, prompt=400, most=100))


async def test_answers_without_redis_tell_what_is_left_of_the_share(scene: Scene) -> None:
    await scene.world.replica()
    door = await scene.door()
    key = await known_key(scene, door, rpm=100)
    scene.hang()
    ticket = await door.admit(scene.world.request(key))
    headers = ticket.rate_limit_headers()
    assert door.degraded
    assert headers["x-ratelimit-limit-requests"] == "80"
    assert headers["x-ratelimit-remaining-requests"] == "79"
    await used(ticket)


async def test_limits_and_capacity_are_shared_out(scene: Scene) -> None:
    await scene.world.replica(slots=10)
    doors = [await scene.door() for _ in range(2)]
    key = await known_key(scene, doors[0])
    limited = await known_key(scene, doors[0], rpm=10)
    await until(lambda: all(door._share and door._share.ingresses == 2 for door in doors))
    scene.hang()
    for _ in range(4):  # 0.8 / 2 of ten
        await doors[0].admit(scene.world.request(key))
    with pytest.raises(Overloaded):
        await doors[0].admit(scene.world.request(key))
    with pytest.raises(StoreUnavailable):  # nobody asked there with that key
        await doors[1].identify(limited.secret)


async def test_a_closed_door_refuses_everybody(scene: Scene) -> None:
    await scene.world.replica()
    door = await scene.door(journal_dir=None)
    key = await known_key(scene, door)
    scene.hang()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await door.admit(scene.world.request(key))
    assert not door.degraded
    assert door.replicas_alone() == 0


async def test_a_key_is_trusted_for_a_while_only(scene: Scene) -> None:
    await scene.world.replica()
    door = await scene.door(trust_keys_s=1.5)
    key = await known_key(scene, door)
    scene.hang()
    await asyncio.sleep(1.6)
    with pytest.raises(StoreUnavailable):
        await door.admit(scene.world.request(key))
    with pytest.raises(StoreUnavailable):
        await door.identify(key.secret)


async def test_revoked_keys_and_empty_budgets_get_nothing_without_redis(scene: Scene) -> None:
    await scene.world.replica()
    door = await scene.door()
    poor = await known_key(scene, door, tokens_per_day=15)
    gone = await known_key(scene, door)
    with pytest.raises(QuotaExhausted):
        await door.admit(scene.world.request(poor))
    scene.world.keys.revoke(gone.key.id)
    await scene.world.publish()
    with pytest.raises(Unauthorized):
        await door.admit(scene.world.request(gone))
    scene.hang()
    for key in (poor, gone):
        with pytest.raises(StoreUnavailable):
            await door.admit(scene.world.request(key))


async def test_the_owner_can_stop_what_runs_without_redis(scene: Scene) -> None:
    await scene.world.replica()
    door = await scene.door()
    key = await known_key(scene, door)
    scene.hang()
    request = scene.world.request(key)
    heard: list[str] = []
    ticket = await door.admit(request)
    ticket.when_stopped(heard.append)
    assert await door.stop_request(request.rid, key.key.id)
    assert heard == ["cancelled"]


async def test_what_a_killed_ingress_wrote_down_is_told_by_the_next_and_counted_once(
    scene: Scene,
) -> None:
    await scene.world.replica()
    door = await scene.door()
    key = await known_key(scene, door)
    scene.hang()
    await used(await door.admit(scene.world.request(key)))
    assert door._watcher is not None
    assert door._journals is not None
    door._watcher.cancel()  # it dies here, with what it has written
    copy = (scene.folder / "journal" / f"{door.ingress}.jsonl").read_bytes()
    door._journals.close()
    door._journals = None
    scene.resume()
    await scene.door()

    async def written() -> bool:
        return len(await scene.ledger()) == 1

    await until(written)
    (scene.folder / "journal" / "again.jsonl").write_bytes(copy)  # it died before it said so
    last = await scene.door()
    await until(lambda: not list((scene.folder / "journal").glob("again*")))
    assert last.journal_bytes == 0
    assert len(await scene.ledger()) == 1


async def test_an_emptied_redis_is_filled_before_it_is_told(scene: Scene) -> None:
    await scene.world.replica()
    door = await scene.door()
    key = await known_key(scene, door)
    scene.hang()
    running, ended = [await door.admit(scene.world.request(key)) for _ in range(2)]
    await used(ended)
    scene.resume()
    await scene.world.store.command("FLUSHALL")
    await until(lambda: not door.degraded and not door.journal_bytes)
    assert (await pool_totals(scene.world.store)).running == 1
    assert len(await scene.ledger()) == 1
    await used(running)
