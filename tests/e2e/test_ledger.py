"""What a running service writes into its ledger, against what its replies say was used."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx2 as httpx
import openai
import pytest
import redis

from serve_app.tenancy.redis_server import running_url
from tests.e2e.service import Service, running_service

pytestmark = pytest.mark.e2e

PRICES = {"INPUT": "0.55", "CACHED_INPUT": "0.14", "OUTPUT": "2.19"}
ASKED: dict[str, Any] = {
    "model": "deepseek-r1-32b",
    "messages": [{"role": "user", "content": "How many n's are in the word 'banana'?"}],
    "max_tokens": 60,
}


@pytest.fixture(scope="module")
def priced() -> Iterator[Service]:
    with running_service(
        {f"DEEPREQUEST_MODEL__PRICE__{name}": value for name, value in PRICES.items()}
    ) as service:
        yield service


def used(service: Service, client: openai.OpenAI) -> dict[str, Any]:
    """The one row of /v1/usage."""
    reply = httpx.get(
        f"{service.url}/v1/usage", headers={"authorization": f"Bearer {client.api_key}"}
    )
    (row,) = reply.json()["data"]
    told: dict[str, Any] = row
    return told


def new_key(service: Service, tenant: str, *limits: str) -> tuple[str, openai.OpenAI]:
    created = service.cli("keys", "create", "--tenant", tenant, *limits)
    return created["id"], service.client(created["secret"])


def rows_of(service: Service, key: str) -> list[dict[str, Any]]:
    with sqlite3.connect(f"file:{service.state_dir}/ledger.db?mode=ro", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM ledger WHERE key=?", [key])]


def within(seconds: float, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def price_of(usage: Any) -> int:
    """Micro-units of a reply's `usage`."""
    price = {name: Decimal(value) for name, value in PRICES.items()}
    cached = usage.prompt_tokens_details.cached_tokens
    fresh = usage.prompt_tokens - cached
    told = fresh * price["INPUT"] + cached * price["CACHED_INPUT"]
    return int(told + usage.completion_tokens * price["OUTPUT"] + Decimal("0.5"))


def test_the_ledger_says_what_the_replies_said(priced: Service) -> None:
    key, client = new_key(priced, "teller")
    usages = [client.chat.completions.create(**ASKED, seed=seed).usage for seed in range(4)]
    streamed = ASKED | {"stream": True, "stream_options": {"include_usage": True}}
    for seed in range(4):
        usages.append([c.usage for c in client.chat.completions.create(**streamed, seed=seed)][-1])
    within(60, lambda: len(rows_of(priced, key)) == len(usages))
    said = sorted(
        (u.prompt_tokens, u.prompt_tokens_details.cached_tokens, u.completion_tokens, price_of(u))
        for u in usages
    )
    row = used(priced, client)
    assert (row["requests"], row["currency"]) == (len(usages), "USD")
    assert row["input_tokens"] == sum(u.prompt_tokens for u in usages)
    assert row["output_tokens"] == sum(u.completion_tokens for u in usages)
    assert row["cost_micros"] == sum(map(price_of, usages))
    (listed,) = priced.cli("usage", "--key", key)["usage"]
    assert listed == row
    rows = rows_of(priced, key)
    columns = ("input_tokens", "cached_tokens", "output_tokens", "cost_micros")
    assert sorted(tuple(row[name] for name in columns) for row in rows) == said
    assert {(row["tenant"], row["model"], row["how"]) for row in rows} == {
        ("teller", "deepseek-r1-32b", "ok")
    }


def test_a_stream_that_was_left_is_charged_for_what_it_had_produced(priced: Service) -> None:
    key, client = new_key(priced, "leaver")
    asked = ASKED | {"max_tokens": 400, "extra_body": {"ignore_eos": True}, "stream": True}
    with client.chat.completions.create(**asked) as stream:
        for _ in range(20):
            next(stream)
    within(60, lambda: len(rows_of(priced, key)) == 1)
    (row,) = rows_of(priced, key)
    assert row["how"] == "abort"
    assert 15 <= row["output_tokens"] < 400
    assert row["cost_micros"] > 0


def test_an_emptied_redis_keeps_spent_budgets(priced: Service) -> None:
    key, client = new_key(priced, "spender", "--tokens-per-day", "150")
    client = client.with_options(max_retries=0)
    client.chat.completions.create(**ASKED)
    within(60, lambda: len(rows_of(priced, key)) == 1)
    path = (running_url(priced.state_dir / "redis") or "").removeprefix("unix://")
    with redis.Redis(unix_socket_path=path) as connection:
        connection.flushall()

    def restored() -> bool:
        found = priced.cli("usage", "reconcile", "--fix")
        return not found["differences"] and used(priced, client)["requests"] == 1

    within(60, restored)
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**ASKED | {"max_tokens": 150})
    assert refused.value.code == "insufficient_quota"
    assert len(rows_of(priced, key)) == 1
