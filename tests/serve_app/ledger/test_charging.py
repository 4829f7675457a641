"""What was charged is what the ledger holds, whoever dies on the way."""

import asyncio
import contextlib
import random
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from serve_app.ledger.database import LedgerUnavailable
from serve_app.ledger.sink import LedgerSink, SinkSettings
from serve_app.ledger.sums import UsageQuery
from serve_app.tenancy.admission import AdmissionQueue
from serve_app.tenancy.keys import CreatedKey
from serve_app.tenancy.price import Price
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.session import SessionSettings
from serve_app.tenancy.usage import LedgerEntry, UsageMeter, UsageTotals
from tests.serve_app.ledger.breaking import BreakingDatabase
from tests.serve_app.tenancy.world import World, until

PRICE = Price(currency="USD", input=550_000, cached_input=140_000, output=2_190_000)
MORTAL = SessionSettings(lease_s=1.2, beat_s=0.1, tick_s=0.03)
BRIEF = SinkSettings(lease_s=0.001, batch=5)


class Traffic:
    """Requests of three keys at two ingresses, one of which will be killed; sinks that die between
    storing and forgetting, overtake each other, and store again what was in Redis long before."""

    def __init__(self, world: World, database: BreakingDatabase, rng: random.Random) -> None:
        self.world, self.database, self.rng = world, database, rng
        self.meter = UsageMeter(world.store)
        self._old = list[LedgerEntry]()
        self.delivered = 0

    async def request(self, queue: AdmissionQueue, key: CreatedKey, *, settled: bool) -> None:
        ticket = await queue.admit(self.world.request(key))
        output = self.rng.randrange(50)
        ticket.when_asked(lambda: output)
        self.delivered += output
        if settled:
            outcome = self.rng.choice(("ok", "ok", "abort", "error"))
            cached = self.rng.randrange(11)
            await ticket.settle(
                prompt_tokens=10, cached_tokens=cached, output_tokens=output, outcome=outcome
            )

    async def move(self) -> None:
        """One batch, by a sink that may die of it."""
        self._old += await self.meter.ledger(count=5)
        self.database.dies_after = self.rng.random() < 0.5
        with contextlib.suppress(LedgerUnavailable):
            await LedgerSink(self.world.store, self.database, "mortal", BRIEF).step()
        with contextlib.suppress(LedgerUnavailable):
            self.database.store(self.world.store.pool, self._old)

    async def move_all(self) -> None:
        self.database.dies_after = False
        sink = LedgerSink(self.world.store, self.database, "last", BRIEF)
        while await self.meter.ledger(count=1):
            await sink.step()
            await asyncio.sleep(0.002)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("kills", [False, True])
def test_the_ledger_holds_what_was_delivered_and_charged(
    redis_server: RedisServer, tmp_path: Path, seed: int, kills: bool
) -> None:
    asyncio.run(_run(redis_server.url, tmp_path / str(seed), seed, kills))


async def _run(url: str, folder: Path, seed: int, kills: bool) -> None:
    folder.mkdir(exist_ok=True)
    rng = random.Random(seed)
    async with World(url, folder) as world:
        database = BreakingDatabase(f"sqlite:///{folder}/{world.pool}.db")
        keys, _ = [await world.key(t) for t in ("acme", "acme", "bolt")], await world.replica()
        mortal = await world.ingress(session=MORTAL, price=PRICE)
        alive = await world.ingress(price=PRICE)
        traffic = Traffic(world, database, rng)
        for _ in range(40):
            queue = rng.choice((mortal, alive))
            settled = not kills or queue is alive or rng.random() < 0.5
            await traffic.request(queue, rng.choice(keys), settled=settled)
            if rng.random() < 0.4:
                await traffic.move()
        if kills:
            await _kill(world, mortal)
        await traffic.move_all()
        await _compare(traffic, keys)
        database.close()


async def _kill(world: World, ingress: AdmissionQueue) -> None:
    await ingress._session._tell_output()  # a beat before its death
    for loop in ingress._session._loops:
        loop.cancel()

    async def all_ended() -> bool:
        return not (await world.pool_record())["running"]

    await until(all_ended)


async def _compare(traffic: Traffic, keys: list[CreatedKey]) -> None:
    sums = traffic.database.sums
    assert sum(one.output_tokens for one in sums(UsageQuery())) == traffic.delivered
    assert sum(one.requests for one in sums(UsageQuery())) == 40
    for key in keys:
        total = next(iter(sums(UsageQuery(key=key.key.id))), None)
        charged = await traffic.meter.of_key(key.key.id)
        if total is None:
            assert charged.requests == 0
            continue
        counts = total.requests, total.input_tokens, total.cached_tokens, total.output_tokens
        assert charged == UsageTotals(*counts)
    for one in sums(UsageQuery(by=("tenant",))):
        spent = await traffic.world.spent("t", one.tenant or "")
        assert spent["dsp"] == spent["msp"] == one.input_tokens + one.output_tokens
        assert spent["dmo"] == spent["mmo"] == one.cost_micros
