"""What the commands read from, and write to, a running service: through Redis alone.

Owns the shape of `deeprequest status --json`. Needs no HTTP, no Ray and no key: whoever reaches the
state directory, or the Redis of the cluster, runs the service.
"""

from typing import Any

from serve_app.tenancy.capacity import ReplicaRecord, pool_view
from serve_app.tenancy.keys import KeyBook, publish
from serve_app.tenancy.store import Store


async def read_status(url: str, pool: str = "main") -> dict[str, Any]:
    """Replicas with a fresh heartbeat, and the queue.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with Store(url, pool) as store:
        totals, records = await pool_view(store)
    return {
        "replicas": [replica_status(record) for record in records],
        "queue": {"waiting": totals.waiting, "running": totals.running},
    }


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
