"""The queue as operators see it: who waits, in which class, for how long.

Owns the shape; the figures are read in one step by scripts/queue.lua. Changes nothing.
"""

import msgspec

from serve_app.tenancy.capacity import pool_totals
from serve_app.tenancy.keys import CLASSES
from serve_app.tenancy.store import Store


class WaitingTenant(msgspec.Struct, frozen=True):
    """A tenant with waiters in a class."""

    service_class: str
    tenant: str
    waiting: int
    oldest_wait_s: float
    in_flight: int
    """Its requests, waiting and running, of all classes."""


class QueueView(msgspec.Struct, frozen=True):
    """The pool at one instant; `tenants` in the order of their turns, at most 64 of a class."""

    running: int
    waiting: int
    replicas: int
    tenants: list[WaitingTenant]


async def queue_view(store: Store) -> QueueView:
    """Raises StoreUnavailable."""
    totals = await pool_totals(store)
    rows = await store.run("queue", *CLASSES)
    tenants = [
        WaitingTenant(name, tenant, waiting, oldest_ms / 1000, in_flight)
        for name, tenant, waiting, oldest_ms, in_flight in rows
    ]
    return QueueView(totals.running, totals.waiting, totals.ready_replicas, tenants)
