"""Usage over HTTP: a real Redis and a real SQLite behind it."""

import csv
import datetime
import io
from typing import Any

import pytest

from serve_app.ledger.sink import LedgerSink
from serve_app.tenancy.keys import CreatedKey
from tests.serve_app.ledger.entries import entry
from tests.serve_app.site import Site, error_of
from tests.serve_app.tenancy.world import until

pytestmark = pytest.mark.anyio
OWN, ALL = "/v1/usage", "/admin/v1/usage"


def bearer(key: CreatedKey) -> dict[str, str]:
    return {"authorization": f"Bearer {key.secret}"}


async def rows(
    site: Site, caller: CreatedKey, path: str = OWN, **query: Any
) -> list[dict[str, Any]]:
    reply = await site.client.get(path, params=query, headers=bearer(caller))
    assert reply.status_code == 200, reply.text
    assert reply.headers["cache-control"] == "no-store"
    assert reply.json()["object"] == "list"
    data: list[dict[str, Any]] = reply.json()["data"]
    return data


async def answered(site: Site, key: CreatedKey) -> dict[str, int]:
    """The usage of one more answer."""
    reply = await site.chat(bearer(key))

    async def settled() -> bool:
        return not (await site.world.pool_record())["running"]

    await until(settled)
    usage = reply.json()["usage"]
    return {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}


async def test_a_request_that_just_ended_counts_before_and_after_it_is_stored(site: Site) -> None:
    await site.world.replica()
    key, other = await site.world.key(), await site.world.key()
    usage = await answered(site, key)
    await answered(site, other)
    before = await rows(site, key)
    assert [row["requests"] for row in before] == [1]
    assert {name: before[0][name] for name in usage} == usage
    sink = LedgerSink(site.world.store, site.ledger, "i1")
    assert await sink.step() == 2
    assert await rows(site, key) == before
    await answered(site, key)
    assert [row["requests"] for row in await rows(site, key)] == [2]


async def test_days_models_and_keys_are_told_apart_and_bounded(site: Site) -> None:
    key = await site.world.key_for("usage")
    site.ledger.store(
        "main",
        [
            entry(key=key.key.id, day=20_000 + day, model=model, cost_micros=1_500_000)
            for day in range(3)
            for model in ("r1", "r2")
        ],
    )
    found = await rows(site, key, group_by=["day", "model"], start="2024-10-05", end="2024-10-06")
    assert [(row["day"], row["model"], row["cost"], row["currency"]) for row in found] == [
        (f"2024-10-0{day}", model, "1.50", "USD") for day in (5, 6) for model in ("r1", "r2")
    ]
    assert "tenant" not in found[0]
    (total,) = await rows(site, key, group_by=["key", "key"])
    assert (total["key"], total["requests"]) == (key.key.id, 6)


async def test_an_admin_sees_everybody_and_any_tenant_or_key(site: Site) -> None:
    admin = await site.world.key_for("admin")
    site.ledger.store("main", [entry(tenant=t, key=k) for t, k in (("a", "1"), ("b", "2"))])
    assert [row["tenant"] for row in await rows(site, admin, ALL, group_by="tenant")] == ["a", "b"]
    assert [row["requests"] for row in await rows(site, admin, ALL)] == [2]
    (one,) = await rows(site, admin, ALL, key="2", group_by="tenant")
    assert one["tenant"] == "b"
    assert await rows(site, admin, ALL, tenant="nobody") == []


async def test_csv_has_the_rows_of_json(site: Site) -> None:
    key = await site.world.key_for("usage")
    site.ledger.store("main", [entry(key=key.key.id, day=20_000 + day) for day in range(2)])
    reply = await site.client.get(f"{OWN}?format=csv&group_by=day", headers=bearer(key))
    assert reply.headers["content-type"].startswith("text/csv")
    lines = list(csv.DictReader(io.StringIO(reply.text)))
    told = await rows(site, key, group_by="day")
    assert lines == [{name: str(value) for name, value in row.items()} for row in told]


async def test_each_route_needs_its_scope(site: Site) -> None:
    plain, admin = await site.world.key_for("inference"), await site.world.key_for("admin")
    usage = await site.world.key_for("usage")
    for key, path in ((plain, OWN), (plain, ALL), (usage, ALL), (admin, OWN)):
        reply = await site.client.get(path, headers=bearer(key))
        assert reply.status_code == 403
        assert error_of(reply)["code"]
    for path in (OWN, ALL):
        assert (await site.client.get(path)).status_code == 401


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("start=yesterday", "start"),
        ("group_by=tenant", "group_by"),
        ("format=xml", "format"),
        ("start=2024-10-05&end=2024-10-04", "end"),
    ],
)
async def test_a_wrong_parameter_is_named(site: Site, query: str, param: str) -> None:
    key = await site.world.key_for("usage")
    reply = await site.client.get(f"{OWN}?{query}", headers=bearer(key))
    assert reply.status_code == 400
    assert str(error_of(reply)["param"]).startswith(param)


async def test_the_last_day_that_there_is_may_be_asked_for(site: Site) -> None:
    assert await rows(site, await site.world.key_for("usage"), end=str(datetime.date.max)) == []


async def test_a_ledger_that_is_away_is_told_and_requests_are_served(site: Site) -> None:
    await site.world.replica()
    key = await site.world.key()
    site.ledger.away = True
    await answered(site, key)
    reply = await site.client.get(OWN, headers=bearer(key))
    assert reply.status_code == 503
    assert error_of(reply)["code"] == "ledger_unavailable"
    assert int(reply.headers["retry-after"]) > 0
