import asyncio
from pathlib import Path

import pytest

from serve_app.tenancy.admission import AdmissionQueue, AdmitRequest
from serve_app.tenancy.capacity import pool_totals
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.refusals import RateLimited, StoreUnavailable
from tests.serve_app.tenancy.world import MORTAL, World, until

pytestmark = pytest.mark.anyio


def silence(queue: AdmissionQueue) -> None:
    """What kill -9 does to an ingress, as Redis sees it."""
    for loop in queue._session._loops:
        loop.cancel()


async def test_dead_ingress_gives_its_slots_back_after_the_lease(world: World) -> None:
    key, _ = await world.key(concurrency=100), await world.replica(slots=100)
    dead, alive = await world.ingress(session=MORTAL), await world.ingress()
    for _ in range(100):
        await dead.admit(world.request(key))
    silence(dead)
    with pytest.raises(RateLimited):
        await alive.admit(world.request(key))

    async def freed() -> bool:
        totals = await pool_totals(world.store)
        assert totals.running <= 100
        return totals.running == 0

    await until(freed)
    await alive.admit(world.request(key))
    assert await world.raw("XLEN", "led") == 100


async def test_waiters_of_a_dead_ingress_do_not_hold_up_the_queue(world: World) -> None:
    key, _ = await world.key(), await world.replica(slots=1)
    dead, alive = await world.ingress(session=MORTAL), await world.ingress()
    running = await alive.admit(world.request(key))
    lost = [asyncio.create_task(dead.admit(world.request(key))) for _ in range(40)]
    await until(lambda: _waiting(world, 40))
    silence(dead)
    waiter = asyncio.create_task(alive.admit(world.request(key)))
    await until(lambda: _waiting(world, 1))
    await running.settle(prompt_tokens=1, output_tokens=1)
    assert (await waiter).queued_s > 0
    for task in lost:
        task.cancel()


async def test_paused_ingress_takes_its_running_requests_up_again(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    paused = await world.ingress()
    tickets = [await paused.admit(world.request(key)) for _ in range(3)]
    silence(paused)
    await world.store.run("beat", paused.ingress, 1)  # its lease ends now
    await world.store.run("tick", 0)
    assert (await pool_totals(world.store)).running == 0
    for _ in range(2):  # it wakes up
        await paused._session.beat()
    assert (await pool_totals(world.store)).running == 3
    for ticket in tickets:
        await ticket.settle(prompt_tokens=1, output_tokens=1)
    assert (await pool_totals(world.store)).running == 0


async def test_request_held_for_an_ingress_that_does_not_know_it_is_freed(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    numbers = (10, 10, 0, 0, 10**12, 10)
    await world.store.run(
        "admit", key.key.digest, "stray", queue.ingress, *numbers, "", "m", "", "", -1
    )

    async def freed() -> bool:
        return (await pool_totals(world.store)).running == 0

    await until(freed)


async def test_lost_grant_is_repeated_by_the_next_beat(world: World) -> None:
    key, _ = await world.key(), await world.replica(slots=1)
    queue = await world.ingress()
    running = await queue.admit(world.request(key))
    queue._session._loops[2].cancel()  # nobody reads the list of grants
    waiter = asyncio.create_task(queue.admit(world.request(key)))
    await until(lambda: _waiting(world, 1))
    await running.settle(prompt_tokens=1, output_tokens=1)
    assert (await waiter).fence > running.fence


async def test_stopping_ingress_answers_its_waiters_and_leaves_nothing(world: World) -> None:
    key, _ = await world.key(), await world.replica(slots=1)
    queue = AdmissionQueue(world.store, world.keys, world.pepper)
    await queue.start()
    await queue.admit(world.request(key))
    waiter = asyncio.create_task(queue.admit(world.request(key)))
    await until(lambda: _waiting(world, 1))
    await queue.stop()
    with pytest.raises(StoreUnavailable):
        await waiter
    totals = await pool_totals(world.store)
    assert (totals.running, totals.waiting) == (0, 0)
    await world.store.run("tick", 0)
    assert await world.raw("ZCARD", "ls") == 0


async def test_a_request_that_was_taken_for_lost_and_comes_back_is_counted_once_in_all(
    world: World,
) -> None:
    key, _ = await world.key(tpm=10_000), await world.replica()
    queue = await world.ingress(session=MORTAL)
    ticket = await queue.admit(world.request(key, prompt=100, most=50))
    await world.store.run("seen", queue.ingress, ticket.rid, 5)
    lease = f"{world.store.prefix}ls"
    await world.store.command("ZADD", lease, 1, queue.ingress)  # a network was cut for that long
    await world.store.run("tick", 0)
    assert (await pool_totals(world.store)).running == 0
    await queue.session.rebuild()  # it is heard of again
    await ticket.settle(prompt_tokens=100, cached_tokens=64, output_tokens=30, reasoning_tokens=7)
    rows = await world.store.command("XRANGE", f"{world.store.prefix}led", "-", "+")
    found = [(row["rid"], row["how"], row["in"], row["cached"], row["out"]) for _, row in rows]
    assert found == [
        (ticket.rid, "lost", "100", "0", "5"),
        (f"{ticket.rid}-back1", "ok", "0", "0", "25"),
    ]
    assert await world.store.run("usage", f"k:{key.key.id}") == [1, 100, 0, 30]


async def test_a_grant_read_after_the_lease_is_asked_for_again(world: World) -> None:
    key, _ = await world.key(), await world.replica(slots=1)
    paused, other = await world.ingress(session=MORTAL), await world.ingress()
    silence(paused)
    first = await other.admit(world.request(key))
    waiter = asyncio.create_task(paused.admit(request := world.request(key)))
    await until(lambda: _waiting(world, 1))
    await first.settle(
        prompt_tokens=1, output_tokens=1
    )  # the waiter is granted, and cannot hear it
    await world.store.command("ZADD", f"{world.store.prefix}ls", 1, paused.ingress)
    await world.store.run("tick", 0)  # its lease is over: the slot is free
    second = await other.admit(world.request(key))
    paused.session._lease_ends = 0.0
    paused.session._hear(f"g {request.rid} {first.fence + 1} r1 100")  # it wakes up
    await until(lambda: _waiting(world, 1))
    assert not waiter.done()
    await second.settle(prompt_tokens=1, output_tokens=1)
    await paused.session.beat()
    ticket = await waiter
    assert ticket.fence > second.fence
    await ticket.settle(prompt_tokens=1, output_tokens=1)
    assert (await pool_totals(world.store)).running == 0


class TestOwnServer:
    """Faults of Redis itself need a server of one's own."""

    async def test_emptied_redis_is_filled_again(self, tmp_path: Path) -> None:
        with RedisServer(tmp_path / "data") as server:
            async with World(server.url, tmp_path) as world:
                key, _ = await world.key(concurrency=3), await world.replica(slots=2)
                queues = [await world.ingress() for _ in range(2)]
                tickets = [await queue.admit(world.request(key)) for queue in queues]
                waiter = asyncio.create_task(queues[0].admit(world.request(key)))
                await until(lambda: _waiting(world, 1))
                await world.store.command("FLUSHALL")

                async def known_again() -> bool:
                    return (await pool_totals(world.store)).running == 2

                await until(known_again)
                await until(lambda: _waiting(world, 1))  # it asked again by itself
                with pytest.raises(RateLimited):  # keys and concurrency are back
                    await queues[1].admit(world.request(key))
                await world.replica(slots=2)
                for ticket in tickets:
                    await ticket.settle(prompt_tokens=1, output_tokens=1)
                await (await waiter).settle(prompt_tokens=1, output_tokens=1)
                assert (await pool_totals(world.store)).running == 0

    async def test_admission_while_redis_is_away_fails_fast_and_recovers(
        self, tmp_path: Path
    ) -> None:
        with RedisServer(tmp_path / "data") as server:
            async with World(server.url, tmp_path) as world:
                key, _ = await world.key(), await world.replica()
                queue = await world.ingress()
                ticket = await queue.admit(world.request(key))
                await asyncio.sleep(1.2)  # the append-only file is written each second
                assert server._process is not None
                server._process.kill()
                server._process.wait()
                with pytest.raises(StoreUnavailable):
                    await queue.admit(world.request(key))
                settled = ticket.settle(prompt_tokens=1, output_tokens=1)
                server.ensure()
                await settled
                await until(lambda: _admits(queue, world.request(key)))
                assert await world.raw("XLEN", "led") == 1


async def _waiting(world: World, count: int) -> bool:
    return (await pool_totals(world.store)).waiting == count


async def _admits(queue: AdmissionQueue, request: AdmitRequest) -> bool:
    try:
        await queue.admit(request)
    except StoreUnavailable:
        return False
    return True
