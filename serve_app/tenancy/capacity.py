"""CapacityReporter and the pool's view: what replicas tell Redis, and what Redis knows of them.

Owns the CAP heartbeat of a model replica and the reading of replicas and totals for status,
readiness, metrics and autoscaling. Decides nothing: scripts/capacity.lua does.
"""

import secrets
from collections import defaultdict
from typing import Any

import msgspec

from serve_app.tenancy.store import Store


class ReplicaLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A replica's own account, in KV tokens and requests."""

    kv_total: int
    kv_free: int
    """What new requests could take: free, or cached and unused."""
    max_running: int
    """Requests it wants at a time; somewhat more than it computes at once keeps it busy."""
    kv_planned: int | None = None
    """What its requests use now, and what those that it preempted or has not begun will; None: the
    former."""
    running: int = 0
    waiting: int = 0
    block_size: int = 1
    preemptions: int = 0
    """Requests it had to preempt since it lives."""


class ReplicaRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A replica with a fresh heartbeat."""

    id: str
    state: str
    """ready, starting or draining."""
    incarnation: str
    load: ReplicaLoad
    info: dict[str, Any]
    """Whatever it reported beside, for status pages."""


class PoolTotals(msgspec.Struct, frozen=True, kw_only=True):
    """The pool's sums, in KV tokens and requests."""

    ready_replicas: int
    waiting: int
    """Requests in the queue."""
    waiting_need: int
    """KV tokens they will need."""
    running: int
    committed: int
    """KV tokens promised to running requests."""
    kv_total: int
    kv_reserve: float
    """KV tokens reserved for a token of expected output."""
    admitted: int
    settled: int
    cancelled: int
    """Left the queue without having run."""
    ledger_waiting: int
    """Ledger entries that are not in the database yet."""
    ledger_dropped: int
    """Ledger entries that were dropped before they were, since Redis was empty."""


class CapacityReporter:
    """The Redis face of one model replica. Report four times a second."""

    def __init__(self, store: Store, replica_id: str, *, ttl_s: float = 2.0) -> None:
        """`ttl_s`: after so long without a report its capacity is gone."""
        self._store, self._id = store, replica_id
        self._ttl_us = round(ttl_s * 1e6)
        self._incarnation = secrets.token_hex(4)

    async def report(
        self, load: ReplicaLoad, state: str = "ready", info: dict[str, Any] | None = None
    ) -> int:
        """CAP: heartbeat and truth; freed capacity is granted in the same step.

        Returns the number of requests still waiting in the pool. Raises StoreUnavailable.
        """
        planned = load.kv_total - load.kv_free if load.kv_planned is None else load.kv_planned
        waiting = await self._store.run(
            "cap",
            self._id,
            self._ttl_us,
            state,
            load.kv_total,
            load.kv_free,
            planned,
            load.running,
            load.waiting,
            load.max_running,
            load.block_size,
            load.preemptions,
            self._incarnation,
            msgspec.json.encode(info or {}).decode(),
        )
        return int(waiting)

    async def leave(self) -> None:
        """The replica is gone at once, instead of after `ttl_s`. Raises StoreUnavailable."""
        await self._store.run(
            "cap", self._id, 0, "stopped", 0, 0, 0, 0, 0, 0, 1, 0, self._incarnation, "{}"
        )


async def pool_view(store: Store) -> tuple[PoolTotals, list[ReplicaRecord]]:
    """Totals and the replicas with a fresh heartbeat, of one instant. Raises StoreUnavailable."""
    totals, flat = await store.run("view")
    pool: dict[str, int] = defaultdict(int, zip(totals[::2], totals[1::2], strict=True))
    records = [_record(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
    return (
        PoolTotals(
            ready_replicas=sum(record.state == "ready" for record in records),
            waiting=pool["waiting"],
            waiting_need=pool["wneed"],
            running=pool["running"],
            committed=pool["committed"],
            kv_total=pool["ktot"],
            kv_reserve=pool["q"] / 100,
            admitted=pool["nadm"],
            settled=pool["nset"],
            cancelled=pool["ncan"],
            ledger_waiting=pool["led"],
            ledger_dropped=pool["ndrop"],
        ),
        records,
    )


async def pool_totals(store: Store) -> PoolTotals:
    """Raises StoreUnavailable."""
    return (await pool_view(store))[0]


async def replicas(store: Store) -> list[ReplicaRecord]:
    """Replicas with a fresh heartbeat, whatever their state. Raises StoreUnavailable."""
    return (await pool_view(store))[1]


def _record(replica_id: str, flat: list[str]) -> ReplicaRecord:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return ReplicaRecord(
        id=replica_id,
        state=fields["state"],
        incarnation=fields["incarnation"],
        load=ReplicaLoad(
            kv_total=int(fields["kv_total"]),
            kv_free=int(fields["kv_free"]),
            kv_planned=int(fields["kv_planned"]),
            max_running=int(fields["max_running"]),
            running=int(fields["running"]),
            waiting=int(fields["waiting"]),
            block_size=int(fields["block"]),
            preemptions=int(fields["preempted"]),
        ),
        info=msgspec.json.decode(fields["info"]),
    )
