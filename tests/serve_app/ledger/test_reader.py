import pytest

from serve_app.ledger.database import LedgerUnavailable
from serve_app.ledger.reader import UsageReader
from serve_app.ledger.sink import LedgerSink
from serve_app.ledger.sums import UsageQuery
from tests.serve_app.ledger.breaking import BreakingDatabase
from tests.serve_app.tenancy.world import World

pytestmark = pytest.mark.anyio
EVERYTHING = UsageQuery()


async def spend(world: World, times: int) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    for _ in range(times):
        ticket = await queue.admit(world.request(key))
        await ticket.settle(prompt_tokens=2, output_tokens=3)


async def test_what_is_stored_and_what_waits_count_once_each(
    world: World, breaking: BreakingDatabase
) -> None:
    await spend(world, 3)
    breaking.dies_after = True  # stored, and still in Redis
    with pytest.raises(LedgerUnavailable):
        await LedgerSink(world.store, breaking, "i1").step()
    await spend(world, 2)
    (total,) = await UsageReader(world.store, breaking).sums(EVERYTHING)
    assert (total.requests, total.output_tokens) == (5, 15)


async def test_without_a_database_what_waits_is_told(world: World) -> None:
    await spend(world, 3)
    (total,) = await UsageReader(world.store, None).sums(EVERYTHING)
    assert total.requests == 3
    assert await UsageReader(None, None).sums(EVERYTHING) == []


async def test_more_waiting_entries_than_a_server_should_read_are_refused(
    world: World, breaking: BreakingDatabase
) -> None:
    await spend(world, 3)
    assert await UsageReader(world.store, breaking, most_waiting=3).sums(EVERYTHING)
    with pytest.raises(LedgerUnavailable, match="too many entries"):
        await UsageReader(world.store, breaking, most_waiting=2).sums(EVERYTHING)
