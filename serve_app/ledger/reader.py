"""UsageReader: what was used, up to this moment.

Owns that an entry counts once, whether it is in the database, still in Redis, or on its way.
Refuses to know who may ask.
"""

import asyncio

from serve_app.ledger.database import LedgerDatabase, LedgerUnavailable
from serve_app.ledger.sums import UsageQuery, UsageSum, with_entries
from serve_app.tenancy.store import Store
from serve_app.tenancy.usage import UsageMeter


class UsageReader:
    """Reads a service's ledger."""

    def __init__(
        self,
        store: Store | None,
        database: LedgerDatabase | None,
        *,
        most_waiting: int | None = None,
    ) -> None:
        """None: there is no Redis that runs; nothing is kept for good. `most_waiting`: with more
        entries in Redis nothing is told, so that no reader holds up the streams of its process."""
        self._store, self._database, self._most_waiting = store, database, most_waiting

    async def sums(self, query: UsageQuery) -> list[UsageSum]:
        """In order. Raises StoreUnavailable, LedgerUnavailable."""
        waiting = []
        if self._store is not None:  # first: what leaves Redis now is in the database afterwards
            meter = UsageMeter(self._store)
            if self._most_waiting is not None and await meter.waiting() > self._most_waiting:
                raise LedgerUnavailable("too many entries wait in Redis to be stored")
            entries = await meter.all_waiting()
            waiting = [(self._store.pool, entry) for entry in entries]
        if self._database is None:
            return with_entries(query, (), waiting)
        return await asyncio.to_thread(self._database.sums, query, waiting)
