"""KernelWatch: keeps the fingerprint true to who computes.

Owns the look at the kernels that ready replicas report, which they may have chosen by measuring,
and the name that follows from them. Knows no HTTP and no engine.
"""

import asyncio
import contextlib
from collections.abc import Callable

from serve_app.fingerprint import Fingerprint
from serve_app.tenancy.capacity import PoolTotals, ReplicaRecord, pool_view
from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.store import Store, StoreError

PERIOD_S = 5.0


class KernelWatch:
    """One per ingress."""

    def __init__(
        self,
        store: Store,
        fingerprint: Fingerprint,
        tell: Callable[[str], None],
        *,
        period_s: float = PERIOD_S,
    ) -> None:
        """`tell` is given every new name. While no replica is ready the last one stays."""
        self._store = store
        self._fingerprint = fingerprint
        self._tell = tell
        self._period_s = period_s
        self._kernels: frozenset[str] = frozenset()

    async def view(self) -> tuple[PoolTotals, list[ReplicaRecord]]:
        """The pool, whose kernels are noted on the way. Raises StoreUnavailable."""
        totals, records = await pool_view(self._store)
        ready = (record.info for record in records if record.state == "ready")
        kernels = frozenset(info["kernels"] for info in ready if info.get("kernels"))
        if kernels and kernels != self._kernels:
            self._kernels = kernels
            self._tell(self._fingerprint.name(kernels))
        return totals, records

    async def run(self) -> None:
        """Look for ever; what cannot be read now is read later."""
        while True:
            with contextlib.suppress(StoreUnavailable, StoreError):
                await self.view()
            await asyncio.sleep(self._period_s)
