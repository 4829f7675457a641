"""UsageMeter: what keys and tenants have used.

Owns reading the ledger (one entry per settled request, written by the step that settles) and the
totals kept beside the meters. Counts are integers from the engine; nothing here estimates.
"""

import msgspec

from serve_app.tenancy.store import Store


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
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    queued_ms: int
    ran_ms: int


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

    async def _totals(self, scope: str) -> UsageTotals:
        return UsageTotals(*await self._store.run("usage", scope))


def _entry(entry_id: str, fields: dict[str, str]) -> LedgerEntry:
    return LedgerEntry(
        id=entry_id,
        rid=fields["rid"],
        key=fields["key"],
        tenant=fields["ten"],
        how=fields["how"],
        input_tokens=int(fields["in"]),
        cached_tokens=int(fields["cached"]),
        output_tokens=int(fields["out"]),
        queued_ms=int(fields["queued"]),
        ran_ms=int(fields["ran"]),
    )
