"""Session: the standing of one ingress in Redis.

Owns the lease and its renewal, the news about waiters, the detached end of every request, and
putting things right when Redis has forgotten (or kept) what it should not. Refuses to know limits
and prompts: it deals in request ids.

Four loops: BEAT each second, TICK some seven times a second, one blocking read for grants, and, for
each request that ends, a task of its own that repeats SETTLE or CANCEL until Redis has heard it.
"""

import asyncio
import contextlib
import contextvars
import itertools
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, Literal

import msgspec
import structlog

from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.store import Store, StoreError

CHUNK = 64
OUTAGE_S = 2.0
"""Waiters are given up when Redis has been silent for so long."""

StopReason = Literal["cancelled", "revoked"]
"""A request ends early because its owner wants it no more, or because its key was revoked."""

log = structlog.get_logger(__name__)


class SessionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The rhythm of a session."""

    lease_s: float = 10.0
    beat_s: float = 1.0
    tick_s: float = 0.15
    """Two of them take back what 64 requests of a dead ingress held."""

    @property
    def counted_s(self) -> float:
        """How long the ingress itself counts on a lease."""
        return self.lease_s - min(2.0, self.lease_s / 5)


class News(msgspec.Struct, frozen=True):
    """What became of a waiter: `run`, `full`, `none`, `stopped` (by its owner), `revoked` (its
    key), `gone` (ask again) or `away` (no Redis)."""

    kind: str
    fence: int = 0
    replica: str = ""
    kv: int = 0
    """KV tokens reserved for it when it was granted."""
    wait_s: float = 0.0


class Lease(msgspec.Struct, kw_only=True):
    """What RESTORE needs to register a running request again."""

    rid: str
    digest: str
    key_id: str
    tenant: str
    weight: int
    service_class: str
    prompt_tokens: int
    output_tokens: int
    kv: int
    longest_us: int
    model: str
    price: str
    ended: asyncio.Event
    """Set when Redis ended the request because it ran past its longest time."""
    stopped: StopReason | None = None
    """Why the request shall end."""
    on_stop: Callable[[StopReason], None] | None = None
    output_so_far: Callable[[], int] | None = None
    """Tokens it has produced."""

    def stop(self, reason: StopReason) -> None:
        """Only the first reason counts."""
        if self.stopped is None:
            self.stopped = reason
            if self.on_stop is not None:
                self.on_stop(reason)

    def when_stopped(self, call: Callable[[StopReason], None]) -> None:
        """Calls `call`, at once or later, when the request shall end."""
        self.on_stop = call
        if self.stopped is not None:
            call(self.stopped)

    def restore_args(self) -> tuple[str | int, ...]:
        """In the order of restore.lua."""
        whose = (self.rid, self.digest, self.key_id, self.tenant, self.weight, self.service_class)
        reserved = (self.prompt_tokens, self.output_tokens, self.kv, self.longest_us)
        return (*whose, *reserved, self.model, self.price)


class Session:
    """One ingress incarnation, from start to stop, on one event loop."""

    def __init__(
        self,
        store: Store,
        load_keys: Callable[[], Awaitable[str]],
        keys_changed: Callable[[], bool],
        settings: SessionSettings,
    ) -> None:
        """`load_keys` runs CONF and returns the epoch; `keys_changed` since it last did so."""
        self.ingress = secrets.token_hex(8)
        self._store, self._settings = store, settings
        self._load_keys, self._keys_changed = load_keys, keys_changed
        self._waiting: dict[str, asyncio.Future[News]] = {}
        self._asked_by: dict[str, str] = {}  # the digests of the waiting
        self._running: dict[str, Lease] = {}
        self._leaving: set[str] = set()
        self._surplus: set[str] = set()
        self._missing: set[str] = set()
        self._epoch, self._key_changes = "", 0
        self._strange_beats = 0
        self._last_answer = time.monotonic()
        self._lease_ends = 0.0
        self._ends: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._ending = False
        self._cursor = itertools.count(0, CHUNK)

    async def start(self) -> None:
        """Loads the keys, takes the lease, starts the loops. Raises StoreUnavailable."""
        await self.rebuild()
        await self.beat()
        loops = (self._beat_loop(), self._tick_loop(), self._grant_loop())
        self._loops = [_free_task(loop) for loop in loops]

    async def stop(self) -> None:
        """Ends the loops, lets ends under way reach Redis (2 s), gives the lease back."""
        self._ending = True
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for rid in list(self._waiting):
            self._tell(rid, News("away"))
        for rid in (*self._waiting, *self._running):
            self.end(rid, "cancel", rid)
        if self._ends:
            await asyncio.wait(self._ends, timeout=2.0)
        for task in self._ends:
            task.cancel()
        with contextlib.suppress(StoreUnavailable):
            await self._store.run("beat", self.ingress, 0)

    def expect(self, rid: str, digest: str) -> asyncio.Future[News]:
        """Listens for news of `rid`, asked for by the key `digest`; call it before ADMIT is sent.

        Raises:
            ValueError: the id is in use.
        """
        if rid in self._waiting or rid in self._running or rid in self._leaving:
            raise ValueError(f"request id {rid} is in use")
        return self.listen_again(rid, digest)

    def listen_again(self, rid: str, digest: str) -> asyncio.Future[News]:
        """A fresh ear, as after `gone`."""
        future: asyncio.Future[News] = asyncio.get_running_loop().create_future()
        self._waiting[rid], self._asked_by[rid] = future, digest
        return future

    def forget(self, rid: str) -> None:
        """`rid` was refused: nothing is held."""
        self._unlisten(rid)

    def runs(self, lease: Lease) -> None:
        """`lease` was granted."""
        self._unlisten(lease.rid)
        self._running[lease.rid] = lease

    @property
    def leases(self) -> Collection[Lease]:
        """Of what runs here."""
        return self._running.values()

    def lease_left_s(self) -> float:
        """How long Redis still counts on this ingress; below 0: no more. Ends before Redis's own
        count does: what was granted to a process that then was paused may be somebody else's."""
        return self._lease_ends - time.monotonic()

    def forget_run(self, rid: str) -> None:
        """`rid` runs no more, and Redis is told by another way."""
        self._running.pop(rid, None)

    def end(
        self, rid: str, script: str, *args: str | int, after: asyncio.Task[Any] | None = None
    ) -> asyncio.Future[None]:
        """Sends SETTLE or CANCEL (after `after` is done) until Redis has heard it, whatever happens
        to the caller; the result may be awaited and cancelled freely."""
        self._unlisten(rid)
        self._running.pop(rid, None)
        self._leaving.add(rid)
        task = _free_task(self._end(rid, script, args, after))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)
        return asyncio.shield(task)

    def _unlisten(self, rid: str) -> None:
        self._waiting.pop(rid, None)
        self._asked_by.pop(rid, None)

    async def _end(
        self, rid: str, script: str, args: Iterable[str | int], after: asyncio.Task[Any] | None
    ) -> None:
        try:
            if after is not None:
                await asyncio.wait({after})
            for attempt in itertools.count():
                with contextlib.suppress(StoreUnavailable):
                    await self._store.run(script, *args)
                    return
                await asyncio.sleep(min(1.0, 0.05 * 2 ** min(attempt, 5)))
        except StoreError as error:
            log.error("settle_failed", rid=rid, script=script, error=str(error))
        finally:
            self._leaving.discard(rid)

    async def rebuild(self) -> None:
        """Loads the keys into an empty Redis and registers what runs. Raises StoreUnavailable."""
        self._epoch = await self._load_keys()
        await self._restore(self._running)

    async def beat(self) -> None:
        """Renews the lease and compares notes. Raises StoreUnavailable."""
        asked, began = self._next_waiters(), time.monotonic()
        lease_us = round(self._settings.lease_s * 1e6)
        epoch, key_changes, count, *states = await self._store.run(
            "beat", self.ingress, lease_us, *asked
        )
        self._last_answer = time.monotonic()
        self._lease_ends = began + self._settings.counted_s
        missing = set()
        for rid, i in zip(asked, range(0, len(states), 4), strict=True):
            if states[i] == "run":
                self._tell(rid, News("run", *states[i + 1 : i + 4]))
            elif states[i] == "gone":
                missing.add(rid)
        for rid in missing & self._missing:  # the first time its news may be on the way
            self._tell(rid, News("gone"))
        self._missing = missing
        if epoch != self._epoch:
            log.warning("redis_was_empty", ingress=self.ingress)
            await self.rebuild()
        elif self._keys_changed():
            await self._load_keys()
        if key_changes != self._key_changes:
            await self._stop_revoked()
            self._key_changes = key_changes
        strange = count != len(self._waiting) + len(self._running) + len(self._leaving)
        self._strange_beats = self._strange_beats + 1 if strange else 0
        if self._strange_beats >= 2:
            await self._reconcile()

    async def _stop_revoked(self) -> None:
        """Ends what runs or waits for keys that are no longer good."""
        digests = [*{*self._asked_by.values(), *(one.digest for one in self._running.values())}]
        for start in range(0, len(digests), CHUNK):
            refused = set(await self._store.run("refused", *digests[start : start + CHUNK]))
            for lease in list(self._running.values()):
                if lease.digest in refused:
                    lease.stop("revoked")
            for rid, digest in self._asked_by.items():
                if digest in refused:
                    self._tell(rid, News("revoked"))

    def _next_waiters(self) -> list[str]:
        """Some waiters, others each time, none twice in a call."""
        rids = list(self._waiting)
        if len(rids) <= CHUNK:
            return rids
        start = next(self._cursor) % len(rids)
        return (rids[start:] + rids[:start])[:CHUNK]

    async def _tell_output(self) -> None:
        """What running requests have produced, which is charged if this ingress dies."""
        told: list[str | int] = []
        for lease in self._running.values():
            if lease.output_so_far is not None:
                told += (lease.rid, lease.output_so_far())
        for start in range(0, len(told), 2 * CHUNK):
            await self._store.run("seen", self.ingress, *told[start : start + 2 * CHUNK])

    async def _reconcile(self) -> None:
        """What runs here but is unknown there is restored; what is held there but unknown here,
        seen twice (a settlement may be under way), is cancelled."""
        key = f"{self._store.prefix}in:{self.ingress}"
        held = set(await self._store.command("SMEMBERS", key))
        await self._restore(rid for rid in self._running if rid not in held)
        surplus = held - self._running.keys() - self._waiting.keys() - self._leaving
        stale = list(surplus & self._surplus)[:CHUNK]
        self._surplus = surplus
        if stale:
            await self._store.run("cancel", *stale)

    async def _restore(self, rids: Iterable[str]) -> None:
        leases = [self._running[rid] for rid in rids]
        for start in range(0, len(leases), CHUNK):
            chunk = leases[start : start + CHUNK]
            args = itertools.chain.from_iterable(lease.restore_args() for lease in chunk)
            await self._store.run("restore", self.ingress, *args)

    async def _beat_loop(self) -> None:
        while True:
            await asyncio.sleep(self._settings.beat_s)
            try:
                await self.beat()
                await self._tell_output()
            except StoreUnavailable:
                if time.monotonic() - self._last_answer > OUTAGE_S:
                    for rid in list(self._waiting):
                        self._tell(rid, News("away"))
            except StoreError as error:
                log.error("beat_failed", error=str(error))

    async def _tick_loop(self) -> None:
        period = self._settings.tick_s
        while True:
            await asyncio.sleep(period * random.uniform(0.8, 1.2))
            try:
                await self._store.run("tick", round(period * 0.7e6))
            except StoreUnavailable:
                continue
            except StoreError as error:
                log.error("tick_failed", error=str(error))

    async def _grant_loop(self) -> None:
        reader = self._store.grants(self.ingress)
        try:
            while not self._ending:  # a client that connects can swallow a cancellation
                try:
                    for line in await reader.read():
                        self._hear(line)
                except StoreUnavailable:
                    await asyncio.sleep(0.1)
        finally:
            await reader.aclose()

    def _hear(self, line: str) -> None:
        kind, rid, *rest = line.split(" ")
        if kind == "g":
            self._granted(rid, News("run", int(rest[0]), rest[1], int(rest[2])))
        elif kind == "x":
            self._tell(rid, News(rest[0], wait_s=int(rest[1]) / 1000))
        elif kind == "c":
            self._stopped(rid)
        elif rid in self._running:
            self._running.pop(rid).ended.set()

    def _stopped(self, rid: str) -> None:
        lease = self._running.get(rid)
        if lease is not None:
            lease.stop("cancelled")
        else:
            self._tell(rid, News("stopped"))

    def _granted(self, rid: str, news: News) -> None:
        if rid in self._waiting:
            self._tell(rid, news)
        elif rid not in self._running and rid not in self._leaving:
            self.end(rid, "cancel", rid)  # nobody here wants it any more

    def _tell(self, rid: str, news: News) -> None:
        future = self._waiting.get(rid)
        if future is not None and not future.done():
            future.set_result(news)


def _free_task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task that inherits nothing from the request it was started for."""
    return asyncio.create_task(work, context=contextvars.Context())
