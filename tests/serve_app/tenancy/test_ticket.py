"""A request that its owner stops, wherever it waits or runs."""

import asyncio

import pytest

from serve_app.tenancy.capacity import pool_totals
from serve_app.tenancy.refusals import Stopped, Unauthorized
from tests.serve_app.tenancy.world import World, attempt, until

pytestmark = pytest.mark.anyio


async def test_a_running_request_hears_of_its_stop_at_any_ingress(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    mine, other = await world.ingress(), await world.ingress()
    ticket = await mine.admit(world.request(key))
    heard: list[str] = []
    ticket.when_stopped(heard.append)
    assert await other.stop_request(ticket.rid, key.key.id)
    await until(lambda: heard)
    assert (await pool_totals(world.store)).running == 1  # until whoever runs it settles
    await ticket.settle(prompt_tokens=10, output_tokens=3, outcome="abort")
    assert not await other.stop_request(ticket.rid, key.key.id)


async def test_a_stop_that_came_first_is_heard_afterwards(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    tickets = [await queue.admit(world.request(key)) for _ in range(2)]
    heard: list[int] = []
    tickets[1].when_stopped(lambda _: heard.append(1))
    for ticket in tickets:
        assert await queue.stop_request(ticket.rid, key.key.id)
    await until(lambda: heard)  # news come in order
    tickets[0].when_stopped(lambda _: heard.append(0))
    assert heard == [1, 0]


async def test_a_waiting_request_is_refused_and_gives_its_place_back(world: World) -> None:
    key, _ = await world.key(tpm=1000), await world.replica(slots=1)
    queue = await world.ingress()
    running = await queue.admit(world.request(key, most=90))
    request = world.request(key, most=400)
    waiter = asyncio.create_task(attempt(queue, request))

    async def waiting() -> int:
        return (await pool_totals(world.store)).waiting

    await until(waiting)
    assert await queue.stop_request(request.rid, key.key.id)
    assert isinstance(await waiter, Stopped)
    await until(lambda: _is_empty(world))
    figures = (await queue.identify(key.secret, fresh=True)).figures
    assert figures.tokens is not None
    assert figures.tokens.remaining >= 900
    await running.settle(prompt_tokens=10, output_tokens=90)


@pytest.mark.parametrize("rid", ["r-unknown", "", "x" * 65, "a b", "*", "chatcmpl-\u00e9"])
async def test_what_does_not_run_cannot_be_stopped(world: World, rid: str) -> None:
    key, queue = await world.key(), await world.ingress()
    assert not await queue.stop_request(rid, key.key.id)


async def test_another_keys_request_cannot_be_stopped(world: World) -> None:
    key, stranger, _ = await world.key(), await world.key(), await world.replica()
    queue = await world.ingress()
    ticket = await queue.admit(world.request(key))
    heard: list[str] = []
    ticket.when_stopped(heard.append)
    assert not await queue.stop_request(ticket.rid, stranger.key.id)
    assert await queue.stop_request(ticket.rid, key.key.id)
    await until(lambda: heard)
    assert heard == ["cancelled"]


async def test_revoking_a_key_ends_what_it_runs_and_what_waits_within_a_beat(world: World) -> None:
    key, other, _ = await world.key(), await world.key(), await world.replica(slots=2)
    queue = await world.ingress()
    ticket, others = await queue.admit(world.request(key)), await queue.admit(world.request(other))
    heard: list[str] = []
    ticket.when_stopped(heard.append)
    others.when_stopped(heard.append)
    waiter = asyncio.create_task(attempt(queue, world.request(key)))
    await until(lambda: _waiting(world))
    world.keys.revoke(key.key.id)
    await world.publish()
    refusal = await waiter
    assert isinstance(refusal, Unauthorized)
    assert refusal.reason == "revoked"
    assert heard == ["revoked"]
    with pytest.raises(Unauthorized):
        await queue.admit(world.request(key))


async def test_a_key_that_is_gone_from_the_file_is_ended_like_a_revoked_one(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    ticket = await queue.admit(world.request(key))
    heard: list[str] = []
    ticket.when_stopped(heard.append)
    world.keys.path.write_text("version: 99\n")
    await until(lambda: heard)  # whoever edits the file need tell nobody
    assert heard == ["revoked"]
    with pytest.raises(Unauthorized):
        await queue.identify(key.secret, fresh=True)


async def test_a_rotated_key_runs_on_with_either_secret(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    ticket = await queue.admit(world.request(key))
    heard: list[str] = []
    ticket.when_stopped(heard.append)
    rotated = world.keys.rotate(key.key.id, overlap_s=60)
    await world.publish()
    found = [await queue.identify(one.secret, fresh=True) for one in (key, rotated)]
    assert {identity.key_id for identity in found} == {key.key.id}
    other = await queue.admit(world.request(rotated))
    await queue._session.beat()
    assert heard == []
    world.keys.revoke(key.key.id)
    await world.publish()
    other.when_stopped(heard.append)
    await until(lambda: len(heard) == 2)


async def _waiting(world: World) -> bool:
    return (await pool_totals(world.store)).waiting == 1


async def _is_empty(world: World) -> bool:
    return (await pool_totals(world.store)).waiting == 0
