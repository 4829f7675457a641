"""Session: the standing of one ingress in Redis.

Owns the lease and its renewal, the news about waiters, the detached end of every request, and
putting things right when Redis has forgotten (or kept) what it should not. Refuses to know limits
and prompts: it deals in request ids.

Four loops: BEAT each second, TICK about four times a second, one blocking read for grants, and, for
each request that ends, a task of its own that repeats SETTLE or CANCEL until Redis has heard it.
"""

import asyncio
import contextlib
import contextvars
import itertools
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import msgspec
import structlog

from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.store import Store, StoreError

CHUNK = 64
OUTAGE_S = 3.0
"""Waiters are given up when Redis has been silent for so long."""

log = structlog.get_logger(__name__)


class SessionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The rhythm of a session."""

    lease_s: float = 10.0
    beat_s: float = 1.0
    tick_s: float = 0.25


class News(msgspec.Struct, frozen=True):
    """What became of a waiter: `run`, `full`, `none`, `gone` (ask again) or `away` (no Redis)."""

    kind: str
    fence: int = 0
    replica: str = ""
    wait_s: float = 0.0


class Lease(msgspec.Struct, kw_only=True):
    """What RESTORE needs to register a running request again."""

    rid: str
    digest: str
    key_id: str
    tenant: str
    weight: int
    prompt_tokens: int
    output_tokens: int
    kv: int
    longest_us: int
    ended: asyncio.Event
    """Set when Redis ended the request because it ran past its longest time."""

    def restore_args(self) -> tuple[str | int, ...]:
        """In the order of restore.lua."""
        whose = (self.rid, self.digest, self.key_id, self.tenant, self.weight)
        return (*whose, self.prompt_tokens, self.output_tokens, self.kv, self.longest_us)


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
        self._running: dict[str, Lease] = {}
        self._leaving: set[str] = set()
        self._surplus: set[str] = set()
        self._missing: set[str] = set()
        self._epoch = ""
        self._strange_beats = 0
        self._last_answer = time.monotonic()
        self._ends: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._cursor = itertools.count(0, CHUNK)

    async def start(self) -> None:
        """Loads the keys, takes the lease, starts the loops. Raises StoreUnavailable."""
        await self.rebuild()
        await self.beat()
        loops = (self._beat_loop(), self._tick_loop(), self._grant_loop())
        self._loops = [_free_task(loop) for loop in loops]

    async def stop(self) -> None:
        """Ends the loops, lets ends under way reach Redis (2 s), gives the lease back."""
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

    def expect(self, rid: str) -> asyncio.Future[News]:
        """Listens for news of `rid`; call it before ADMIT is sent.

        Raises:
            ValueError: the id is in use.
        """
        if rid in self._waiting or rid in self._running or rid in self._leaving:
            raise ValueError(f"request id {rid} is in use")
        return self._listen(rid)

    def listen_again(self, rid: str) -> asyncio.Future[News]:
        """A fresh ear after `gone`."""
        return self._listen(rid)

    def _listen(self, rid: str) -> asyncio.Future[News]:
        future: asyncio.Future[News] = asyncio.get_running_loop().create_future()
        self._waiting[rid] = future
        return future

    def forget(self, rid: str) -> None:
        """`rid` was refused: nothing is held."""
        self._waiting.pop(rid, None)

    def runs(self, lease: Lease) -> None:
        """`lease` was granted."""
        self._waiting.pop(lease.rid, None)
        self._running[lease.rid] = lease

    def end(
        self, rid: str, script: str, *args: str | int, after: asyncio.Task[Any] | None = None
    ) -> asyncio.Future[None]:
        """Sends SETTLE or CANCEL (after `after` is done) until Redis has heard it, whatever happens
        to the caller; the result may be awaited and cancelled freely."""
        self._waiting.pop(rid, None)
        self._running.pop(rid, None)
        self._leaving.add(rid)
        task = _free_task(self._end(rid, script, args, after))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)
        return asyncio.shield(task)

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
        asked = self._next_waiters()
        lease_us = round(self._settings.lease_s * 1e6)
        epoch, count, *states = await self._store.run("beat", self.ingress, lease_us, *asked)
        self._last_answer = time.monotonic()
        missing = set()
        for rid, i in zip(asked, range(0, len(states), 3), strict=True):
            if states[i] == "run":
                self._tell(rid, News("run", states[i + 1], states[i + 2]))
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
        strange = count != len(self._waiting) + len(self._running) + len(self._leaving)
        self._strange_beats = self._strange_beats + 1 if strange else 0
        if self._strange_beats >= 2:
            await self._reconcile()

    def _next_waiters(self) -> list[str]:
        """Some waiters, others each time, none twice in a call."""
        rids = list(self._waiting)
        if len(rids) <= CHUNK:
            return rids
        start = next(self._cursor) % len(rids)
        return (rids[start:] + rids[:start])[:CHUNK]

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
            while True:
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
            self._granted(rid, News("run", int(rest[0]), rest[1]))
        elif kind == "x":
            self._tell(rid, News(rest[0], wait_s=int(rest[1]) / 1000))
        elif rid in self._running:
            self._running.pop(rid).ended.set()

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
