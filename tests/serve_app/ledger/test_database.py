import stat
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from serve_app.ledger.database import LedgerDatabase, LedgerUnavailable
from serve_app.ledger.sums import COUNTS, UsageQuery
from serve_app.tenancy.usage import LedgerEntry
from tests.serve_app.ledger.entries import ENTRIES, QUERIES, entry, summed

EVERYTHING = UsageQuery()


def test_an_entry_stored_again_changes_nothing(database: LedgerDatabase) -> None:
    entries = [entry() for _ in range(3)]
    for _ in range(2):
        database.store("main", entries)
    database.store("main", [entry(rid=entries[0].rid, output_tokens=999), entries[1]])
    (total,) = database.sums(EVERYTHING)
    assert (total.requests, total.output_tokens, total.cost_micros) == (3, 21, 63)


def test_a_request_that_was_taken_for_lost_and_came_back_counts_once(
    database: LedgerDatabase,
) -> None:
    lost = entry(how="lost", output_tokens=2)
    ended = entry(rid=lost.rid, output_tokens=50)
    for batch in ([lost], [ended], [lost], [lost, ended]):
        database.store("main", batch)
    (total,) = database.sums(EVERYTHING)
    assert (total.requests, total.output_tokens) == (1, 50)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(stored=ENTRIES, waiting=ENTRIES, query=QUERIES, data=st.data())
def test_sums_are_those_of_entries_stored_or_waiting_each_once(
    tmp_path: Path,
    stored: list[LedgerEntry],
    waiting: list[LedgerEntry],
    query: UsageQuery,
    data: st.DataObject,
) -> None:
    on_its_way = data.draw(st.lists(st.sampled_from(stored))) if stored else []
    database = LedgerDatabase(f"sqlite:///{tmp_path}/{entry().rid}.db")
    database.store("main", stored)
    found = database.sums(query, [("main", one) for one in (*waiting, *on_its_way)])
    database.close()
    assert {
        (one.day, one.tenant, one.key, one.model, one.currency): [
            one.requests,
            *(getattr(one, name) for name in COUNTS),
        ]
        for one in found
    } == summed(query, [*stored, *waiting])


def test_every_database_gives_the_same_sums(database: LedgerDatabase) -> None:
    entries = [
        entry(tenant=tenant, day=20_000 + day, currency=currency, input_tokens=2**40)
        for tenant in ("bolt", "acme")
        for day in range(3)
        for currency in ("USD", "EUR")
    ]
    database.store("main", entries[::2])
    query = UsageQuery(by=("day", "tenant"), tenant="acme")
    found = database.sums(query, [("main", one) for one in entries])
    assert [(str(one.day), one.tenant, one.currency, one.input_tokens) for one in found] == [
        (f"2024-10-0{4 + day}", "acme", currency, 2**40)
        for day in range(3)
        for currency in ("EUR", "USD")
    ]


def test_pools_are_told_apart_where_one_asks(database: LedgerDatabase) -> None:
    database.store("main", [entry()])
    database.store("other", [entry(), entry()])
    assert [one.requests for one in database.sums(UsageQuery(pool="other"))] == [2]
    assert [one.requests for one in database.sums(EVERYTHING)] == [3]


def test_no_entries_make_no_rows(database: LedgerDatabase) -> None:
    database.store("main", [])
    assert database.sums(EVERYTHING) == []
    assert database.stored([]) == set()


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    LedgerDatabase(f"sqlite:///{path}").store("main", [entry()])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "url",
    ["sqlite:////nowhere/at/all/ledger.db", "postgresql://u:hush-hush@127.0.0.1:1/d"],
)
def test_a_database_that_is_away_is_told_without_its_password(url: str) -> None:
    with pytest.raises(LedgerUnavailable) as raised:
        LedgerDatabase(url).store("main", [entry()])
    assert "ledger.db" in str(raised.value) or "127.0.0.1" in str(raised.value)
    assert "hush-hush" not in str(raised.value)


@pytest.mark.parametrize("url", ["", "mysql://h/d", "sqlite://", "ledger.db"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"ledger\.url must be"):
        LedgerDatabase(url)
