"""Budgets of a day and a month: when they refuse, what comes back, and where a month ends."""

import datetime
import json
from typing import Any

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import given, settings

from serve_app.tenancy.admission import AdmissionQueue
from serve_app.tenancy.keys import CreatedKey
from serve_app.tenancy.limiter import Limits
from serve_app.tenancy.price import Price
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.refusals import QuotaExhausted
from serve_app.tenancy.store import STABLE_KEYS, scripts
from serve_app.tenancy.ticket import Ticket
from tests.serve_app.tenancy.world import World, attempt

PRICE = Price(currency="USD", input=1_000_000, cached_input=125_000, output=10_000_000)
MOMENTS = st.datetimes(datetime.datetime(2020, 1, 1), datetime.datetime(2200, 1, 1))


async def admitted(queue: AdmissionQueue, world: World, key: CreatedKey) -> Ticket:
    ticket = await attempt(queue, world.request(key, prompt=10, most=40))
    assert isinstance(ticket, Ticket)
    return ticket


@pytest.mark.anyio
@pytest.mark.parametrize("period", ["day", "month"])
async def test_a_budget_is_never_exceeded_by_what_is_reserved(world: World, period: str) -> None:
    limits: dict[str, Any] = {f"tokens_per_{period}": 120}
    key, _ = await world.key(**limits), await world.replica()
    queue = await world.ingress()
    first, _ = [await admitted(queue, world, key) for _ in range(2)]
    refused = await attempt(queue, world.request(key, prompt=10, most=40))
    assert isinstance(refused, QuotaExhausted)
    assert (refused.period, refused.scope, refused.cost) == (period, "key", 50)
    assert (refused.budget, refused.spent) == (120, 100)
    assert refused.headers()["x-should-retry"] == "false"
    await first.settle(prompt_tokens=10, output_tokens=5)  # 35 come back
    await admitted(queue, world, key)


@pytest.mark.anyio
@pytest.mark.parametrize("period", ["day", "month"])
async def test_a_budget_of_money_holds_what_requests_may_cost(world: World, period: str) -> None:
    limits: dict[str, Any] = {f"money_per_{period}": 1_000}
    key, _ = await world.key(**limits), await world.replica()
    queue = await world.ingress(price=PRICE)
    first, _ = [await admitted(queue, world, key) for _ in range(2)]  # 410 micro-units each
    refused = await attempt(queue, world.request(key, prompt=10, most=40))
    assert isinstance(refused, QuotaExhausted)
    assert (refused.period, refused.scope, refused.unit) == (period, "key", "USD")
    assert (refused.cost, refused.budget, refused.spent) == (410, 1_000, 820)
    assert "0.001 USD a " in str(refused)
    await first.settle(prompt_tokens=10, cached_tokens=8, output_tokens=17)  # costs 173
    await admitted(queue, world, key)


@pytest.mark.anyio
async def test_a_budget_set_later_knows_what_was_spent_before(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress(price=PRICE)
    await (await admitted(queue, world, key)).settle(prompt_tokens=10, output_tokens=40)
    world.keys.set_tenant("acme", Limits(tokens_per_day=99))
    await world.publish()
    refused = await attempt(queue, world.request(key, prompt=10, most=40))
    assert isinstance(refused, QuotaExhausted)
    assert (refused.spent, refused.scope) == (50, "tenant")


@pytest.mark.anyio
async def test_a_tenants_budget_holds_over_all_its_keys(world: World) -> None:
    world.keys.set_tenant("acme", Limits(tokens_per_month=100))
    keys, _ = [await world.key() for _ in range(2)], await world.replica()
    queue = await world.ingress()
    for key in keys:
        await admitted(queue, world, key)
    refused = await attempt(queue, world.request(keys[0], prompt=1, most=1))
    assert isinstance(refused, QuotaExhausted)
    assert refused.scope == "tenant"


@settings(max_examples=200, deadline=None)
@given(spent_at=MOMENTS, after=st.timedeltas(datetime.timedelta(0), datetime.timedelta(70)))
def test_a_budget_is_renewed_exactly_when_its_month_ends(
    redis_server: RedisServer, spent_at: datetime.datetime, after: datetime.timedelta
) -> None:
    asked_at = spent_at + after
    same_month = (spent_at.year, spent_at.month) == (asked_at.year, asked_at.month)
    kinds = _ask_twice(redis_server.url, spent_at, asked_at)
    assert kinds == ["wait", "quota" if same_month else "wait"]


def _ask_twice(url: str, *moments: datetime.datetime) -> list[str]:
    """What ADMIT says of two requests that a month's budget has room for one of."""
    prefix = "dr:{months}:"
    with redis.Redis(unix_socket_path=url.removeprefix("unix://"), decode_responses=True) as client:
        stale: list[str] = client.keys(f"{prefix}*")
        if stale:
            client.delete(*stale)

        def run(name: str, moment: datetime.datetime, *args: str | int) -> list[str]:
            now = int(moment.replace(tzinfo=datetime.UTC).timestamp() * 1_000_000)
            stable = [prefix + key for key in STABLE_KEYS]
            reply: list[str] = client.eval(scripts()[name].text, len(stable), *stable, now, *args)
            return reply

        fields = {"id": "k", "ten": "t", "status": "active", "montok": 10}
        told = {"print": "p", "op": "", "by": "", "at": 0, "version": 0}
        run("conf", moments[0], "epoch", 1, json.dumps([["key", "digest", fields | told]]))
        kinds = []
        for number, moment in enumerate(moments):
            run("beat", moment, "ingress", 10_000_000)
            waits = (10**15, 10**15, 10**15)
            asked = ("digest", f"r{number}", "ingress", 2, 4, *waits, 100, "", "m", "", "", -1)
            kinds.append(str(run("admit", moment, *asked)[0]))
        return kinds
