"""ReplicaReport: what a model replica says of itself, and to whom.

Owns the heartbeat to Redis (four times a second: blocks, requests, state, ranks) and the figures
for Serve's autoscaling. Reads the engine's statistics; decides nothing.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from cluster.request import EngineStats
from serve_app.tenancy.capacity import CapacityReporter, PoolTotals, ReplicaLoad, pool_totals
from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.store import Store, StoreError

log = structlog.get_logger(__name__)

PERIOD_S = 0.25
UNKNOWN = -1.0
"""The queue's figures while Redis cannot be read: the policy then never scales down."""
_TOTALS_PERIOD_S = 1.0
_TOTALS_TRUST_S = 5.0


class TokenRate:
    """Tokens computed a second, prompt and output together, over the last second or so."""

    def __init__(self) -> None:
        self.tokens_per_s = 0.0
        self._last: tuple[float, int] | None = None

    def update(self, stats: EngineStats, now: float) -> None:
        tokens = stats.prompt_tokens + stats.generation_tokens
        if self._last is None:
            self._last = (now, tokens)
        elif now - self._last[0] >= 1.0:
            seconds, computed = now - self._last[0], tokens - self._last[1]
            self.tokens_per_s = computed / seconds
            self._last = (now, tokens)


class ReplicaReport:
    """One replica's voice. `state` is starting, ready or stopped; set it and it is told."""

    def __init__(
        self,
        store: Store,
        replica: str,
        max_running: int,
        stats: Callable[[], EngineStats],
        info: Callable[[], dict[str, Any]],
    ) -> None:
        """`info` is anything for status pages, as JSON."""
        self.state = "starting"
        self._store = store
        self._reporter = CapacityReporter(store, replica)
        self._max_running = max_running
        self._stats = stats
        self._info = info
        self._rate = TokenRate()
        self._totals: PoolTotals | None = None
        self._totals_at = 0.0

    async def run(self) -> None:
        """Report for ever; an outage of Redis is told once and waited out."""
        silent = False
        while True:
            try:
                await self.tell()
                silent = False
            except (StoreUnavailable, StoreError) as error:
                if not silent:
                    log.warning("capacity is not reported", reason=str(error))
                silent = True
            await asyncio.sleep(PERIOD_S)

    async def tell(self) -> None:
        """One heartbeat. Raises StoreUnavailable."""
        stats, now = self._stats(), time.monotonic()
        self._rate.update(stats, now)
        kv_total, kv_free = stats.kv_total_blocks, stats.kv_free_blocks
        load = ReplicaLoad(
            kv_total=kv_total * stats.block_size,
            kv_free=kv_free * stats.block_size,
            kv_planned=(kv_total - kv_free) * stats.block_size + stats.waiting_tokens,
            max_running=self._max_running,
            running=stats.running,
            waiting=stats.waiting,
            block_size=max(1, stats.block_size),
            preemptions=stats.preemptions,
        )
        await self._reporter.report(load, self.state, self._info())
        if now - self._totals_at >= _TOTALS_PERIOD_S:
            self._totals_at = now
            self._totals = await pool_totals(self._store)

    async def leave(self) -> None:
        """Say that this replica is gone, now."""
        self.state = "stopped"
        try:
            await self._reporter.leave()
        except StoreUnavailable as error:
            log.warning("departure is not reported", reason=error.reason)

    def autoscaling_stats(self) -> dict[str, float]:
        """The keys that `serve_app.autoscaling.ReplicaLoad` names."""
        stats = self._stats()
        fresh = time.monotonic() - self._totals_at < _TOTALS_TRUST_S
        totals = self._totals if fresh else None
        used = stats.kv_total_blocks - stats.kv_free_blocks
        return {
            "waiting_tokens": float(stats.waiting_tokens),
            "running_tokens": float(stats.running_tokens),
            "tokens_per_s": self._rate.tokens_per_s,
            "kv_used_fraction": used / stats.kv_total_blocks if stats.kv_total_blocks else 0.0,
            "queue_tokens": float(totals.waiting_need if totals else UNKNOWN),
            "queue_requests": float(totals.waiting if totals else UNKNOWN),
        }
