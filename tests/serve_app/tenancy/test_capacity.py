import asyncio

import pytest

from serve_app.tenancy.capacity import CapacityReporter, ReplicaLoad, pool_totals, replicas
from tests.serve_app.tenancy.world import World, attempt, until

pytestmark = pytest.mark.anyio
LOAD = ReplicaLoad(kv_total=1000, kv_free=900, max_running=8, running=3, waiting=2, block_size=16)


async def test_replicas_are_shown_with_what_they_reported(world: World) -> None:
    reporter = CapacityReporter(world.store, "r1")
    await reporter.report(LOAD, "ready", {"ranks": [{"rank": 0, "pid": 7}]})
    await CapacityReporter(world.store, "r2").report(LOAD, "starting")
    one, other = await replicas(world.store)
    assert (one.id, one.state, other.state) == ("r1", "ready", "starting")
    assert one.info == {"ranks": [{"rank": 0, "pid": 7}]}
    assert (one.load.kv_free, one.load.kv_planned, one.load.running) == (900, 100, 3)
    totals = await pool_totals(world.store)
    assert (totals.ready_replicas, totals.kv_total) == (1, 1000)


async def test_a_waiters_ticket_holds_what_was_reserved_when_its_turn_came(world: World) -> None:
    key = await world.key()
    reporter = CapacityReporter(world.store, "r1")
    room = ReplicaLoad(kv_total=90_000, kv_free=90_000, max_running=20)
    await reporter.report(room)
    queue = await world.ingress()
    before = [await queue.admit(world.request(key, prompt=10, most=400)) for _ in range(20)]
    waiter = asyncio.create_task(queue.admit(world.request(key, prompt=10, most=400)))

    async def queued() -> bool:
        return (await pool_totals(world.store)).waiting == 1

    await until(queued)
    asked = (await pool_totals(world.store)).waiting_need
    await reporter.report(room, "draining")
    for ticket in before:  # answers are short, it turns out
        await ticket.settle(prompt_tokens=10, output_tokens=3)
    await reporter.report(room)
    ticket = await waiter
    assert ticket.kv_need == (await pool_totals(world.store)).committed
    assert ticket.kv_need < asked


async def test_silent_replica_disappears_with_its_capacity(world: World) -> None:
    key = await world.key()
    await CapacityReporter(world.store, "r1", ttl_s=0.2).report(LOAD)
    queue = await world.ingress(cold_start_s=30)
    assert len(await replicas(world.store)) == 1

    async def gone() -> bool:
        return not await replicas(world.store)

    await until(gone)
    waiter = asyncio.create_task(attempt(queue, world.request(key)))

    async def queued() -> bool:
        return (await pool_totals(world.store)).waiting == 1

    await until(queued)
    assert (await pool_totals(world.store)).kv_total == 0
    waiter.cancel()


async def test_draining_and_leaving_take_capacity_away_at_once(world: World) -> None:
    reporter = CapacityReporter(world.store, "r1")
    await reporter.report(LOAD)
    await reporter.report(LOAD, "draining")
    totals = await pool_totals(world.store)
    assert (totals.ready_replicas, totals.kv_total) == (0, 0)
    assert [record.state for record in await replicas(world.store)] == ["draining"]
    await reporter.leave()
    assert await replicas(world.store) == []


async def test_second_replica_adds_its_capacity_and_takes_the_next_request(world: World) -> None:
    key, _ = await world.key(), await world.replica("r1", kv=100)
    queue = await world.ingress()
    first = await queue.admit(world.request(key, prompt=40, most=40))
    waiter = asyncio.create_task(queue.admit(world.request(key, prompt=40, most=40)))
    await world.replica("r2", kv=100)
    second = await waiter
    assert {first.replica, second.replica} == {"r1", "r2"}
    assert (await pool_totals(world.store)).kv_total == 200


async def test_need_is_counted_in_whole_blocks(world: World) -> None:
    key = await world.key()
    await CapacityReporter(world.store, "r1", ttl_s=60).report(LOAD)
    queue = await world.ingress()
    assert (await queue.admit(world.request(key, prompt=1, most=16))).kv_need == 32
