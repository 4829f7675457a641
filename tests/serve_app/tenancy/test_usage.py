import pytest

from serve_app.tenancy.usage import UsageMeter, UsageTotals
from tests.serve_app.tenancy.world import World

pytestmark = pytest.mark.anyio


async def test_every_settled_request_is_in_the_ledger_and_the_totals_once(world: World) -> None:
    one, other = await world.key("acme"), await world.key("acme")
    await world.replica()
    queue = await world.ingress()
    for key, outcome in ((one, "ok"), (one, "abort"), (other, "ok")):
        ticket = await queue.admit(world.request(key))
        for _ in range(2):
            await ticket.settle(prompt_tokens=10, cached_tokens=4, output_tokens=3, outcome=outcome)
    usage = UsageMeter(world.store)
    assert await usage.of_key(one.key.id) == UsageTotals(2, 20, 8, 6)
    assert await usage.of_tenant("acme") == UsageTotals(3, 30, 12, 9)
    assert await usage.of_tenant("nobody") == UsageTotals(0, 0, 0, 0)
    entries = await usage.ledger()
    assert [(entry.key, entry.how) for entry in entries] == [
        (one.key.id, "ok"),
        (one.key.id, "abort"),
        (other.key.id, "ok"),
    ]
    assert {entry.output_tokens for entry in entries} == {3}
    assert await usage.ledger(after=entries[0].id, count=1) == [entries[1]]


async def test_unknown_outcome_is_refused(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    ticket = await queue.admit(world.request(key))
    with pytest.raises(ValueError, match="outcome"):
        ticket.settle(prompt_tokens=1, output_tokens=1, outcome="fine")
