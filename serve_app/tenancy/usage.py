"""UsageMeter: what keys and tenants have used.

Owns reading the ledger (one entry per settled request, written by the step that settles) and the
totals kept beside the meters. Counts are integers from the engine; nothing here estimates.
"""

import msgspec

from serve_app.tenancy.store import Store

DAY_MS = 86_400_000


class UsageTotals(msgspec.Struct, frozen=True):
    """Sums over all settled requests of a key or tenant."""

    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One settled request."""

    id: str
    """The entry's place in the ledger: `<milliseconds>-<n>`."""
    rid: str
    key: str
    tenant: str
    how: str
    """ok, abort, error, cancel (granted, never submitted) or lost (its ingress died)."""
    model: str
    service_class: str
    day: int
    """That budgets count it in: days since 1970-01-01."""
    input_tokens: int
    cached_tokens: int
    """Among the input."""
    output_tokens: int
    reasoning_tokens: int
    """Among the output."""
    cost_micros: int
    """Millionths of the currency's unit."""
    currency: str
    """Empty where the model had no price."""
    queued_ms: int
    ran_ms: int
    epoch: str
    """Of the Redis that wrote it: another one after Redis was emptied."""


class UsageMeter:
    """Reads usage; writing it is part of SETTLE."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def of_key(self, key_id: str) -> UsageTotals:
        """Raises StoreUnavailable."""
        return await self._totals(f"k:{key_id}")

    async def of_tenant(self, tenant: str) -> UsageTotals:
        """Raises StoreUnavailable."""
        return await self._totals(f"t:{tenant}")

    async def ledger(self, after: str = "0", count: int = 1000) -> list[LedgerEntry]:
        """Up to `count` entries after the entry `after`, oldest first. Raises StoreUnavailable."""
        start = "-" if after == "0" else f"({after}"
        key = f"{self._store.prefix}led"
        raw = await self._store.command("XRANGE", key, start, "+", "COUNT", count)
        return [_entry(entry_id, fields) for entry_id, fields in raw]

    async def waiting(self) -> int:
        """How many entries are still in Redis. Raises StoreUnavailable."""
        return int(await self._store.command("XLEN", f"{self._store.prefix}led"))

    async def all_waiting(self) -> list[LedgerEntry]:
        """Every entry that is still in Redis, oldest first. Raises StoreUnavailable."""
        entries: list[LedgerEntry] = []
        while chunk := await self.ledger(after=entries[-1].id if entries else "0"):
            entries += chunk
        return entries

    async def forget(self, last: LedgerEntry) -> None:
        """Drops the entries up to `last`, which are stored elsewhere. Raises StoreUnavailable."""
        milliseconds, _, number = last.id.partition("-")
        after = f"{milliseconds}-{int(number) + 1}"
        await self._store.command("XTRIM", f"{self._store.prefix}led", "MINID", "=", after)

    async def _totals(self, scope: str) -> UsageTotals:
        return UsageTotals(*await self._store.run("usage", scope))


def _entry(entry_id: str, fields: dict[str, str]) -> LedgerEntry:
    """What an entry of an earlier release does not say is empty."""
    ended_on = int(entry_id.partition("-")[0]) // DAY_MS
    return LedgerEntry(
        id=entry_id,
        rid=fields["rid"],
        key=fields["key"],
        tenant=fields["ten"],
        how=fields["how"],
        model=fields.get("model", ""),
        service_class=fields.get("class", ""),
        day=int(fields.get("day", ended_on)),
        input_tokens=int(fields["in"]),
        cached_tokens=int(fields["cached"]),
        output_tokens=int(fields["out"]),
        reasoning_tokens=int(fields.get("reas", 0)),
        cost_micros=int(fields.get("cost", 0)),
        currency=fields.get("cur", ""),
        queued_ms=int(fields["queued"]),
        ran_ms=int(fields["ran"]),
        epoch=fields.get("epoch", ""),
    )
