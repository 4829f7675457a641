"""What the commands read from, and write to, a running service: through Redis alone.

Owns the shape of `deeprequest status --json`. Needs no HTTP, no Ray and no key: whoever reaches the
state directory, or the Redis of the cluster, runs the service.
"""

from typing import Any

from serve_app.tenancy.capacity import ReplicaRecord, pool_view
from serve_app.tenancy.keys import KeyBook
from serve_app.tenancy.publishing import publish
from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.store import Store, StoreError


async def read_status(url: str, pool: str = "main") -> dict[str, Any]:
    """Replicas with a fresh heartbeat, and the queue.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with Store(url, pool, tells_outages=False) as store:
        return await status_of(store)


async def status_of(store: Store) -> dict[str, Any]:
    """`read_status` over a Store that is there. Raises StoreUnavailable."""
    totals, records = await pool_view(store)
    return {
        "replicas": [replica_status(record) for record in records],
        "queue": {"waiting": totals.waiting, "running": totals.running},
    }


async def status_if_known(url: str, pool: str = "main") -> dict[str, Any] | None:
    """`read_status`; None while Redis cannot tell, which ends nothing that runs."""
    try:
        return await read_status(url, pool)
    except (StoreUnavailable, StoreError):
        return None


async def publish_keys(url: str, book: KeyBook, pool: str = "main") -> None:
    """Make a changed key file known to the running service.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with Store(url, pool) as store:
        await publish(store, book)


def replica_status(record: ReplicaRecord) -> dict[str, Any]:
    """One replica as `status --json` shows it; `kv_used` is a share from 0 to 1."""
    load = record.load
    used = 1 - load.kv_free / load.kv_total if load.kv_total else 0.0
    return {
        "id": record.id,
        "state": record.state,
        "progress": record.info.get("progress", ""),
        "kv_used": round(used, 4),
        "running": load.running,
        "waiting": load.waiting,
        "ranks": record.info.get("ranks", []),
    }
