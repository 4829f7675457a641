"""Budgets against the ledger: after Redis was emptied, and whenever they differ."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from serve_app.ledger.reckoning import Reckoning
from serve_app.ledger.sink import LedgerSink
from serve_app.tenancy.admission import AdmissionQueue
from serve_app.tenancy.keys import CreatedKey
from serve_app.tenancy.price import Price
from serve_app.tenancy.refusals import QuotaExhausted
from serve_app.tenancy.ticket import Ticket
from tests.serve_app.ledger.breaking import BreakingDatabase
from tests.serve_app.tenancy.records import pack
from tests.serve_app.tenancy.world import World, attempt, until

pytestmark = pytest.mark.anyio
PRICE = Price(currency="USD", input=1_000_000, cached_input=125_000, output=10_000_000)
BUDGETS = ("dsp", "dmo", "msp", "mmo")


async def spend(world: World, queue: AdmissionQueue, key: CreatedKey) -> None:
    ticket = await queue.admit(world.request(key, prompt=10, most=40))
    await ticket.settle(prompt_tokens=10, output_tokens=40)


async def spent(world: World, key: CreatedKey) -> list[int]:
    record = await world.spent("k", key.key.id)
    return [record.get(name, 0) for name in BUDGETS]


async def emptied(world: World) -> None:
    keys: Any = await world.store.command("KEYS", f"{world.store.prefix}*")
    await world.store.command("DEL", *keys)


async def test_spent_budgets_outlive_an_emptied_redis(
    world: World, breaking: BreakingDatabase
) -> None:
    key, _ = await world.key(tokens_per_day=120), await world.replica()
    queue = await world.ingress(price=PRICE)
    sink = LedgerSink(world.store, breaking, "i1")
    await spend(world, queue, key)
    running = await queue.admit(world.request(key, prompt=10, most=40))
    while await sink.step():
        pass
    assert await spent(world, key) == [100, 820, 100, 820]
    await emptied(world)

    async def registered_again() -> bool:
        return bool((await world.pool_record()).get("running"))

    await until(registered_again)  # the running request, by its ingress
    with capture_logs() as logs:
        await sink.step()
        await sink.step()
    assert [line["event"] for line in logs] == ["budgets_restored"]
    assert await spent(world, key) == [100, 820, 100, 820]
    await world.replica()
    refused = await attempt(queue, world.request(key, prompt=10, most=40))
    assert isinstance(refused, QuotaExhausted)
    await running.settle(prompt_tokens=10, output_tokens=5)
    await sink.step()
    assert await spent(world, key) == [65, 470, 65, 470]
    assert not (await Reckoning(world.store, breaking).compare()).differences


async def test_a_restoration_waits_for_the_database(
    world: World, breaking: BreakingDatabase
) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress(price=PRICE)
    sink = LedgerSink(world.store, breaking, "i1")
    await spend(world, queue, key)
    await sink.step()
    await emptied(world)
    await queue._session.beat()
    breaking.away = True
    with pytest.raises(OSError, match="away"):
        await sink.step()
    await world.replica()
    await spend(world, queue, key)  # nobody waits for it
    breaking.away = False
    await sink.step()
    assert await spent(world, key) == [100, 820, 100, 820]


async def test_differences_are_told_and_mended(world: World, breaking: BreakingDatabase) -> None:
    key, other, _ = await world.key(), await world.key("bolt"), await world.replica()
    queue = await world.ingress(price=PRICE)
    await spend(world, queue, key)
    await LedgerSink(world.store, breaking, "i1").step()
    await spend(world, queue, key)  # one is stored, one is not
    waiting = await queue.admit(world.request(other, prompt=3, most=4))  # one runs
    reckoning = Reckoning(world.store, breaking)
    scopes = [f"k:{other.key.id}", "t:bolt"]
    found = await reckoning.compare(scopes)
    assert (found.compared, found.differences) == (4, [])
    meter = f"{world.store.prefix}mt:k:{key.key.id}"
    record = await world.spent("k", key.key.id)
    packed = pack("mt", record | {"dsp": 7, "mmo": 1})
    await world.store.command("SET", meter, packed)
    for mend in (False, True):
        found = await reckoning.compare(scopes, mend=mend)
        assert [
            (one.scope, one.name, one.period, one.unit, one.counted, one.ledger)
            for one in found.differences
        ] == [
            ("key", key.key.id, "day", "tokens", 7, 100),
            ("key", key.key.id, "month", "money", 1, 820),
        ]
    assert not (await reckoning.compare(scopes)).differences
    await waiting.settle(prompt_tokens=3, output_tokens=1)
    assert not (await reckoning.compare(scopes)).differences


async def test_a_comparison_beside_traffic_finds_nothing(
    world: World, breaking: BreakingDatabase
) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress(price=PRICE)
    sink = LedgerSink(world.store, breaking, "i1")

    async def traffic() -> None:
        for _ in range(60):
            await spend(world, queue, key)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(traffic())
    while not task.done():
        assert not (await Reckoning(world.store, breaking).compare()).differences
        await sink.step()
    ticket = await attempt(queue, world.request(key))
    assert isinstance(ticket, Ticket)
    await ticket.settle(prompt_tokens=1, output_tokens=1)
