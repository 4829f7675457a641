"""What a test of admission needs around it: keys, replicas and ingresses in a pool of its own."""

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from serve_app.tenancy.admission import AdmissionQueue, AdmissionSettings, AdmitRequest
from serve_app.tenancy.capacity import CapacityReporter, ReplicaLoad
from serve_app.tenancy.key_file import KeyFile
from serve_app.tenancy.keys import CreatedKey, Scope
from serve_app.tenancy.limiter import Limits
from serve_app.tenancy.publishing import publish
from serve_app.tenancy.refusals import Refusal
from serve_app.tenancy.secret import load_pepper
from serve_app.tenancy.session import SessionSettings
from serve_app.tenancy.store import Store
from serve_app.tenancy.ticket import Ticket
from tests.serve_app.tenancy.records import unpack

QUICK = SessionSettings(lease_s=60.0, beat_s=0.1, tick_s=0.03)
MORTAL = SessionSettings(lease_s=2.0, beat_s=0.1, tick_s=0.03)

PATIENCE_S = 3.0
"""A loaded machine is not an outage; tests of outages bring a Store of their own."""


class World:
    """One pool."""

    def __init__(self, url: str, folder: Path, pool: str | None = None) -> None:
        self.url, self.pool, self.folder = url, pool or uuid.uuid4().hex[:8], folder
        self.pepper = load_pepper(folder / "pepper")
        self.keys = KeyFile(folder / "tenants.yaml", self.pepper, by="tests")
        self.store = Store(url, self.pool, timeout_s=PATIENCE_S)
        self._stack = contextlib.AsyncExitStack()
        self._numbers = itertools.count()

    async def __aenter__(self) -> "World":
        await self._stack.enter_async_context(self.store)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ingress(self, **settings: Any) -> AdmissionQueue:
        """A started ingress with a connection pool of its own, as in another process."""
        chosen = AdmissionSettings(**({"session": QUICK} | settings))
        store = await self._stack.enter_async_context(
            Store(self.url, self.pool, timeout_s=PATIENCE_S)
        )
        queue = AdmissionQueue(store, self.keys, self.pepper, chosen)
        return await self._stack.enter_async_context(queue)

    async def key(self, tenant: str = "acme", *, expires_at: int = 0, **limits: int) -> CreatedKey:
        """A key that Redis knows."""
        created = self.keys.create(tenant, Limits(**limits), expires_at=expires_at)
        await self.publish()
        return created

    async def key_for(self, *scopes: Scope, models: tuple[str, ...] = ()) -> CreatedKey:
        """A key that is good for these scopes, and these models."""
        created = self.keys.create(
            "acme", shape=lambda key: msgspec.structs.replace(key, scopes=scopes, models=models)
        )
        await self.publish()
        return created

    async def publish(self) -> None:
        await publish(self.store, self.keys.read())

    async def replica(
        self, name: str = "r1", *, kv: int = 100_000, free: int | None = None, slots: int = 1000
    ) -> CapacityReporter:
        """A ready replica that will be believed for a minute."""
        reporter = CapacityReporter(self.store, name, ttl_s=60)
        await reporter.report(
            ReplicaLoad(kv_total=kv, kv_free=kv if free is None else free, max_running=slots)
        )
        return reporter

    async def set_ceiling(self, key: CreatedKey, service_class: str) -> None:
        """Lets a key's requests go as high as `service_class`, or no higher."""
        name = f"key:{key.key.digest}"
        record = await self.record(name) | {"class": service_class}
        packed = msgspec.msgpack.encode(record)
        await self.store.command("SET", f"{self.store.prefix}{name}", packed)

    def request(
        self,
        key: CreatedKey,
        *,
        prompt: int = 10,
        most: int = 10,
        deadline_s: float | None = None,
        service_class: str = "",
    ) -> AdmitRequest:
        return AdmitRequest(
            rid=f"r{next(self._numbers)}",
            digest=key.key.digest,
            prompt_tokens=prompt,
            max_tokens=most,
            deadline_s=deadline_s,
            service_class=service_class,
        )

    async def record(self, name: str) -> dict[str, Any]:
        """A record of the pool as it stands in Redis; empty where there is none."""
        packed = await self.raw("GET", name)
        return unpack(name.partition(":")[0], packed) if packed else {}

    async def pool_record(self) -> dict[str, Any]:
        """The pool's own."""
        return await self.record("pool")

    async def spent(self, kind: str, name: str) -> dict[str, int]:
        """The meter record of a key (`k`) or tenant (`t`)."""
        return await self.record(f"mt:{kind}:{name}")

    async def raw(self, command: str, key: str) -> Any:
        """A command on one of the pool's keys, undecoded."""
        import redis.asyncio

        async with redis.asyncio.Redis.from_url(self.url) as client:
            execute: Callable[..., Any] = client.execute_command
            return await execute(command, f"{self.store.prefix}{key}")


async def attempt(queue: AdmissionQueue, request: AdmitRequest) -> Ticket | Refusal:
    """The ticket, or the refusal as a value."""
    try:
        return await queue.admit(request)
    except Refusal as refusal:
        return refusal


async def until(condition: Callable[[], Any]) -> None:
    """Waits for `condition()` (or what it awaits) to hold; the test's own timeout is the limit."""
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return
        await asyncio.sleep(0.01)
