"""LedgerSink: moves the ledger from Redis into the database.

Owns who does it (every ingress tries a lease in Redis, one holds it), in which order (stored, then
forgotten by Redis, never the other way round) and what is logged: one line when the database goes
away, one when it is back. After Redis was emptied it gives budgets back what the ledger says. Off
the path of every request: without a database entries wait in Redis.

    led ── XRANGE, oldest first ──► store, in one transaction ──► XTRIM up to the last one stored

A sink that dies in between stores the same entries again, which changes nothing.
"""

import asyncio

import msgspec
import structlog

from serve_app.ledger.database import LedgerDatabase, LedgerUnavailable
from serve_app.ledger.reckoning import Reckoning
from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.store import Store, StoreError
from serve_app.tenancy.usage import UsageMeter

log = structlog.get_logger(__name__)


class SinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The rhythm of a sink."""

    period_s: float = 1.0
    """Between looks into a ledger that was empty."""
    lease_s: float = 30.0
    """After so long another ingress takes the place of one that died."""
    batch: int = 500
    """Entries of one transaction."""


class LedgerSink:
    """One ingress's part in moving the ledger."""

    def __init__(
        self,
        store: Store,
        database: LedgerDatabase,
        ingress: str,
        settings: SinkSettings | None = None,
    ) -> None:
        """`ingress`: who holds the lease, if it gets it."""
        self._store, self._database, self._ingress = store, database, ingress
        self.settings = settings or SinkSettings()
        self._meter = UsageMeter(store)
        self._is_away = False
        self._dropped = 0

    async def run(self) -> None:
        """Moves entries until it is cancelled."""
        while True:
            moved = 0
            try:
                moved = await self.step()
            except StoreUnavailable:
                pass  # who admits requests says so
            except StoreError as error:
                log.error("ledger_sink_failed", error=str(error))
            except LedgerUnavailable as error:
                self._tell_away(str(error))
            if moved < self.settings.batch:
                await asyncio.sleep(self.settings.period_s)

    async def step(self) -> int:
        """Moves one batch and returns its size; 0 when another ingress holds the lease.

        Raises StoreUnavailable, LedgerUnavailable.
        """
        lease_us = round(self.settings.lease_s * 1e6)
        held, dropped, reckoned = await self._store.run("sink", self._ingress, lease_us)
        if not held:
            return 0
        self._tell_dropped(dropped)
        if not reckoned:
            restored = await Reckoning(self._store, self._database).restore()
            self._tell_back()
            if restored:
                log.info("budgets_restored", keys_and_tenants=restored)
        entries = await self._meter.ledger(count=self.settings.batch)
        if entries:
            await asyncio.to_thread(self._database.store, self._store.pool, entries)
            await self._meter.forget(entries[-1])
            self._tell_back()
        return len(entries)

    def _tell_away(self, reason: str) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning("ledger_database_away", reason=reason, entries_wait_in="Redis")

    def _tell_back(self) -> None:
        if self._is_away:
            self._is_away = False
            log.info("ledger_database_back")

    def _tell_dropped(self, dropped: int) -> None:
        """What Redis had to drop before it was stored is gone, which is an error each time."""
        if dropped > self._dropped:
            log.error("ledger_entries_dropped", entries=dropped - self._dropped)
        self._dropped = dropped
