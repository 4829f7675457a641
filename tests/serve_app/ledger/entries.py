"""Ledger entries for tests, and their sums counted by hand."""

import datetime
import itertools
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import hypothesis.strategies as st

from serve_app.ledger.sums import COUNTS, UsageQuery
from serve_app.tenancy.usage import LedgerEntry

FIRST_DAY = 20_000
"""2024-10-04."""
NUMBERS = itertools.count()


def entry(**changes: Any) -> LedgerEntry:
    number = next(NUMBERS)
    usual: dict[str, Any] = {
        "id": f"{FIRST_DAY * 86_400_000 + number}-0",
        "rid": f"chatcmpl-{number}",
        "key": "k1",
        "tenant": "acme",
        "how": "ok",
        "model": "r1",
        "service_class": "default",
        "day": FIRST_DAY,
        "input_tokens": 10,
        "cached_tokens": 4,
        "output_tokens": 7,
        "reasoning_tokens": 3,
        "cost_micros": 21,
        "currency": "USD",
        "queued_ms": 5,
        "ran_ms": 900,
        "epoch": "e1",
    }
    return LedgerEntry(**(usual | changes))


_TOKENS = st.integers(0, 2**40)
ENTRIES = st.lists(
    st.builds(
        entry,
        key=st.sampled_from(("k1", "k2", "k3")),
        tenant=st.sampled_from(("acme", "bolt")),
        model=st.sampled_from(("r1", "r2")),
        day=st.integers(FIRST_DAY, FIRST_DAY + 3),
        currency=st.sampled_from(("USD", "EUR", "")),
        epoch=st.sampled_from(("e1", "e2")),
        **dict.fromkeys(COUNTS, _TOKENS),
    ),
    max_size=40,
)
_DAYS = st.none() | st.integers(-1, 4).map(
    lambda day: datetime.date(2024, 10, 4) + datetime.timedelta(day)
)
QUERIES = st.builds(
    UsageQuery,
    by=st.lists(st.sampled_from(("day", "model", "key", "tenant")), unique=True).map(tuple),
    tenant=st.sampled_from((None, "acme", "nobody")),
    key=st.sampled_from((None, "k1")),
    since=_DAYS,
    until=_DAYS,
    not_of_epoch=st.sampled_from((None, "e1")),
)


def summed(query: UsageQuery, entries: Iterable[LedgerEntry]) -> dict[Any, list[int]]:
    """Sums by (day, tenant, key, model, currency), told a second time."""
    sums: dict[Any, list[int]] = defaultdict(lambda: [0] * (1 + len(COUNTS)))
    for one in entries:
        day = datetime.date.fromordinal(datetime.date(1970, 1, 1).toordinal() + one.day)
        if (
            (query.tenant or one.tenant) != one.tenant
            or (query.key or one.key) != one.key
            or (query.since or day) > day
            or (query.until is not None and query.until <= day)
            or query.not_of_epoch == one.epoch
        ):
            continue
        told = {"day": day, "tenant": one.tenant, "key": one.key, "model": one.model}
        place = *(told[name] if name in query.by else None for name in told), one.currency
        row = sums[place]
        row[0] += 1
        for at, name in enumerate(COUNTS):
            row[at + 1] += getattr(one, name)
    return dict(sums)
