"""Usage as typed, with and without a running service."""

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from serve_app.ledger.database import LedgerDatabase
from serve_app.tenancy.redis_server import RedisServer
from tests.serve_app.ledger.entries import entry
from tests.serve_app.typed import Command, command_on


def stored(state_dir: Path, *entries: Any) -> None:
    state_dir.mkdir(parents=True, exist_ok=True)
    database = LedgerDatabase(f"sqlite:///{state_dir}/ledger.db")
    database.store("main", entries)
    database.close()


def told(typed: Command, *words: str) -> list[dict[str, Any]]:
    result = typed("usage", *words, "--json")
    assert result.exit_code == 0, result.stderr
    rows: list[dict[str, Any]] = json.loads(result.stdout)["usage"]
    return rows


def test_sums_are_told_by_day_and_tenant_and_bounded(typed: Command, state: Path) -> None:
    stored(
        state,
        *(entry(tenant=t, day=20_000 + d, key=f"k{t}") for t in ("a", "b") for d in range(3)),
    )
    (total,) = told(typed)
    assert (total["requests"], total["input_tokens"], total["cost"]) == (6, 60, "0.000126")
    bounded = ("--since", "2024-10-05", "--until", "2024-10-06")
    found = told(typed, "--by", "tenant", "--by", "day", *bounded)
    assert [(row["tenant"], row["day"]) for row in found] == [
        (tenant, f"2024-10-0{day}") for day in (5, 6) for tenant in ("a", "b")
    ]
    assert [row["requests"] for row in told(typed, "--tenant", "a", "--key", "ka")] == [3]
    lines = csv.DictReader(io.StringIO(typed("usage", "--by", "day", "--csv").stdout))
    assert [line["requests"] for line in lines] == ["2", "2", "2"]
    assert "reasoning tokens" in typed("usage").stdout


def test_what_a_running_service_has_not_stored_yet_counts(
    typed: Command, redis: RedisServer, served: Path
) -> None:
    import redis as client

    del typed  # no settings around
    stored(served, entry())
    fields = {"rid": "fresh", "key": "k1", "ten": "acme", "how": "ok", "in": 5, "cached": 0}
    with client.Redis(unix_socket_path=redis.url.removeprefix("unix://")) as connection:
        connection.xadd("dr:2:{main}:led", {**fields, "out": 3, "queued": 0, "ran": 1})
    rows = told(command_on(served))
    assert sum(row["requests"] for row in rows) == 2
    assert sum(row["output_tokens"] for row in rows) == 10


def test_budgets_are_compared_with_the_ledger_and_set_to_it(
    typed: Command, redis: RedisServer, served: Path
) -> None:
    import redis as client

    del typed  # no settings around
    today = int(time.time()) // 86_400
    stored(served, entry(key="k9", tenant="t9", day=today))
    with client.Redis(unix_socket_path=redis.url.removeprefix("unix://")) as connection:
        connection.delete("dr:2:{main}:led")
    run = command_on(served)
    for words, code in (((), 1), (("--fix",), 0), ((), 0)):
        result = run("usage", "reconcile", "--json", *words)
        assert result.exit_code == code, result.stderr
        found = json.loads(result.stdout)
        assert found["compared"] == 2
        names = {(one["scope"], one["name"], one["ledger"]) for one in found["differences"]}
        if words or code:
            assert names == {
                (s, n, x) for s, n in (("key", "k9"), ("tenant", "t9")) for x in (17, 21)
            }
    assert found["differences"] == []
    assert "0 differences" in run("usage", "reconcile").stdout


def test_without_a_ledger_nothing_is_reconciled(typed: Command) -> None:
    result = typed("usage", "reconcile")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "has no ledger" in result.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--by", "week"), "--by"),
        (("--since", "2024-10-05", "--until", "2024-10-01"), "--until"),
        ((), "has no ledger"),
    ],
)
def test_a_mistake_is_an_error_line(typed: Command, words: tuple[str, ...], named: str) -> None:
    result = typed("usage", *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert named in result.stderr
    assert typed("usage", "--since", "soon").exit_code == 2


def test_reading_makes_nothing_on_disk(typed: Command, state: Path) -> None:
    typed("usage")
    assert not (state / "ledger.db").exists()
