import pytest

from serve_app.tenancy.price import Price
from serve_app.tenancy.usage import UsageMeter, UsageTotals
from tests.serve_app.tenancy.world import MORTAL, World, until

pytestmark = pytest.mark.anyio
PRICE = Price(currency="USD", input=550_000, cached_input=140_000, output=2_190_000)


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


async def test_a_ledger_entry_says_what_was_asked_of_which_model_and_what_it_cost(
    world: World,
) -> None:
    key, _ = await world.key("acme"), await world.replica()
    queue = await world.ingress(model="r1", price=PRICE)
    ticket = await queue.admit(world.request(key))
    await ticket.settle(prompt_tokens=100, cached_tokens=40, output_tokens=9, reasoning_tokens=5)
    (entry,) = await UsageMeter(world.store).ledger()
    assert (entry.model, entry.service_class, entry.how) == ("r1", "default", "ok")
    assert (entry.input_tokens, entry.cached_tokens, entry.output_tokens) == (100, 40, 9)
    assert entry.reasoning_tokens == 5
    assert (entry.cost_micros, entry.currency) == (PRICE.cost(100, 40, 9), "USD")
    assert entry.day == int(entry.id.partition("-")[0]) // 86_400_000
    assert entry.epoch


async def test_a_lost_request_is_charged_for_what_was_last_heard_of_it(world: World) -> None:
    key, _ = await world.key("acme"), await world.replica()
    dead, alive = await world.ingress(session=MORTAL, price=PRICE), await world.ingress()
    produced = iter(range(1_000))
    tickets = [await dead.admit(world.request(key)) for _ in range(70)]
    for ticket in tickets:
        ticket.when_asked(lambda: next(produced))

    async def all_seen() -> bool:
        return int(await world.raw("HLEN", f"out:{dead.ingress}")) == len(tickets)

    await until(all_seen)
    for loop in dead._session._loops:  # as kill -9 would
        loop.cancel()
    usage = UsageMeter(alive._store)

    async def all_lost() -> bool:
        return len(await usage.ledger()) == len(tickets)

    await until(all_lost)
    entries = await usage.ledger()
    assert {entry.how for entry in entries} == {"lost"}
    assert sum(entry.output_tokens for entry in entries) >= sum(range(70))
    for entry in entries:
        assert entry.cost_micros == PRICE.cost(10, 0, entry.output_tokens)
    assert await usage.of_key(key.key.id) == UsageTotals(
        70, 700, 0, sum(entry.output_tokens for entry in entries)
    )
    assert await world.raw("EXISTS", f"out:{dead.ingress}") == 0


async def test_unknown_outcome_is_refused(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    ticket = await queue.admit(world.request(key))
    with pytest.raises(ValueError, match="outcome"):
        ticket.settle(prompt_tokens=1, output_tokens=1, outcome="fine")
