import asyncio

import pytest
from structlog.testing import capture_logs

from serve_app.ledger.sink import LedgerSink, SinkSettings
from serve_app.ledger.sums import UsageQuery
from serve_app.tenancy.admission import AdmissionQueue
from serve_app.tenancy.capacity import pool_totals
from serve_app.tenancy.keys import CreatedKey
from serve_app.tenancy.price import Price
from serve_app.tenancy.usage import UsageMeter
from tests.serve_app.ledger.breaking import BreakingDatabase
from tests.serve_app.tenancy.world import World, until

pytestmark = pytest.mark.anyio
PRICE = Price(currency="USD", input=550_000, cached_input=140_000, output=2_190_000)
QUICK = SinkSettings(period_s=0.02, batch=7)


async def spend(world: World, queue: AdmissionQueue, key: CreatedKey, times: int) -> None:
    for _ in range(times):
        ticket = await queue.admit(world.request(key))
        await ticket.settle(prompt_tokens=10, cached_tokens=4, output_tokens=3)


async def is_empty(world: World) -> bool:
    return not await UsageMeter(world.store).ledger()


async def test_entries_move_in_order_and_leave_nothing_behind(
    world: World, breaking: BreakingDatabase
) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress(price=PRICE)
    sink = LedgerSink(world.store, breaking, "i1", QUICK)
    await spend(world, queue, key, 10)
    assert [await sink.step() for _ in range(3)] == [7, 3, 0]
    assert await is_empty(world)
    (total,) = breaking.sums(UsageQuery(key=key.key.id))
    assert (total.requests, total.cached_tokens, total.cost_micros) == (10, 40, 100)
    await spend(world, queue, key, 1)
    assert await sink.step() == 1


async def test_one_ingress_moves_the_ledger_and_another_takes_over(
    world: World, breaking: BreakingDatabase
) -> None:
    key, _ = await world.key(), await world.replica()
    await spend(world, await world.ingress(), key, 8)
    brief = SinkSettings(lease_s=1.5, batch=5)
    first, second = (LedgerSink(world.store, breaking, name, brief) for name in ("i1", "i2"))
    assert await first.step() == 5
    assert await second.step() == 0
    await until(second.step)
    assert await is_empty(world)
    (total,) = breaking.sums(UsageQuery())
    assert total.requests == 8


async def test_an_outage_of_the_database_costs_no_request_and_no_entry(
    world: World, breaking: BreakingDatabase
) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    sink = LedgerSink(world.store, breaking, "i1", QUICK)
    with capture_logs() as logs:
        task = asyncio.create_task(sink.run())
        for _ in range(2):
            breaking.away = True
            await spend(world, queue, key, 20)
            await asyncio.sleep(0.2)
            breaking.away = False
            await until(lambda: is_empty(world))
        task.cancel()
    told = [line["event"] for line in logs if line["event"].startswith("ledger")]
    assert told == ["ledger_database_away", "ledger_database_back"] * 2
    (total,) = breaking.sums(UsageQuery())
    assert total.requests == 40


async def test_what_the_bound_drops_is_counted_and_told(
    world: World, breaking: BreakingDatabase
) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    sink = LedgerSink(world.store, breaking, "i1", QUICK)
    await spend(world, queue, key, 1)
    led = f"{world.store.prefix}led"
    ((_, fields),) = await world.store.command("XRANGE", led, "-", "+")
    told = [part for pair in fields.items() for part in pair]
    for _ in range(20):
        more = "for i = 1, 10100 do redis.call('XADD', KEYS[1], '*', unpack(ARGV)) end"
        await world.store.command("EVAL", more, 1, led, *told)
    await spend(world, queue, key, 1)
    left = int(await world.store.command("XLEN", led))
    assert 200_000 <= left < 202_000
    totals = await pool_totals(world.store)
    assert (totals.ledger_waiting, totals.ledger_dropped) == (left, 202_002 - left)
    await world.store.command("XTRIM", led, "MAXLEN", 10)  # to read them all takes its time
    with capture_logs() as logs:
        await sink.step()
        await sink.step()
    assert [line["entries"] for line in logs if line["event"] == "ledger_entries_dropped"] == [
        202_002 - left
    ]


async def test_entries_of_an_earlier_release_are_stored(
    world: World, breaking: BreakingDatabase
) -> None:
    told: dict[str, str | int] = {
        "rid": "r1",
        "key": "k1",
        "ten": "acme",
        "how": "ok",
        "in": 5,
        "cached": 0,
        "out": 3,
    }
    fields = [part for pair in (told | {"queued": 1, "ran": 2}).items() for part in pair]
    await world.store.command("XADD", f"{world.store.prefix}led", "86400000-0", *fields)
    assert await LedgerSink(world.store, breaking, "i1", QUICK).step() == 1
    (total,) = breaking.sums(UsageQuery(by=("day",)))
    assert (str(total.day), total.output_tokens) == ("1970-01-02", 3)
