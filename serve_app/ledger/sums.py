"""Sums over the ledger: what may be asked, and what comes back.

Owns which entries count in a sum and how sums are ordered. Refuses to know where entries are.
"""

import datetime
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from serve_app.tenancy.usage import LedgerEntry

EPOCH = datetime.date(1970, 1, 1)

Dimension = Literal["day", "model", "key", "tenant"]
"""What sums may be told apart by."""


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries are summed up, and how."""

    by: tuple[Dimension, ...] = ()
    tenant: str | None = None
    key: str | None = None
    since: datetime.date | None = None
    """The first day, UTC."""
    until: datetime.date | None = None
    """The day after the last."""
    pool: str | None = None
    not_of_epoch: str | None = None
    """Leaves out what a Redis of that epoch wrote."""

    def takes(self, pool: str, entry: LedgerEntry) -> bool:
        """Whether `entry` is one of them."""
        day = day_of(entry)
        return (
            self.tenant in (None, entry.tenant)
            and self.key in (None, entry.key)
            and (self.since is None or day >= self.since)
            and (self.until is None or day < self.until)
            and self.pool in (None, pool)
            and (self.not_of_epoch is None or entry.epoch != self.not_of_epoch)
        )


class UsageSum(msgspec.Struct, kw_only=True):
    """Sums over entries; a dimension that was not asked for is None. Money of two currencies is
    never added up."""

    day: datetime.date | None = None
    model: str | None = None
    key: str | None = None
    tenant: str | None = None
    currency: str = ""
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_micros: int = 0


COUNTS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "cost_micros")


def day_of(entry: LedgerEntry) -> datetime.date:
    """The calendar day, UTC, that budgets count the entry in."""
    return EPOCH + datetime.timedelta(entry.day)


def with_entries(
    query: UsageQuery, found: Iterable[UsageSum], entries: Iterable[tuple[str, LedgerEntry]]
) -> list[UsageSum]:
    """`found` and those of `entries`, each with its pool, that the query takes; a request counts
    once. In the order of what they are told apart by."""
    sums = {_place(one): one for one in found}
    for pool, entry in {entry.rid: (pool, entry) for pool, entry in entries}.values():
        if query.takes(pool, entry):
            _add(sums, query, entry)
    return [sums[place] for place in sorted(sums)]


def _place(one: UsageSum) -> tuple[str, ...]:
    parts = (one.day, one.tenant, one.key, one.model, one.currency)
    return tuple("" if part is None else str(part) for part in parts)


def _add(sums: dict[tuple[str, ...], UsageSum], query: UsageQuery, entry: LedgerEntry) -> None:
    told: dict[str, Any] = {name: getattr(entry, name) for name in query.by}
    if "day" in told:
        told["day"] = day_of(entry)
    empty = UsageSum(**told, currency=entry.currency)
    total = sums.setdefault(_place(empty), empty)
    total.requests += 1
    for name in COUNTS:
        setattr(total, name, getattr(total, name) + getattr(entry, name))
