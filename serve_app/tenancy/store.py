"""Store: the one door to Redis.

Owns connections, timeouts, the breaker and how scripts are sent. Refuses to know what the scripts
mean. Every key of a pool begins with `dr:2:{<pool>}:`, so a pool lives in one slot of a cluster.
The 2 is the format of its records: releases that cannot read each other's do not meet.

    pool                string  what is promised, running, waiting; the epoch (scripts/common.lua)
    key:<digest>        string  one API key: id, tenant, status, expiry, what it may do
    ten:<tenant>        string  the same limits for a tenant, and its weight
    known               set     `key:<digest>` and `ten:<tenant>` of all of them
    mt:<k|t>:<name>     string  meters (debts), requests in flight, means of output and time,
                                totals and budgets of a key or tenant, a tenant's virtual times
    req:<rid>           string  one request, waiting or running
    q:<class>:<tenant>  zset    waiting request ids by arrival
    vt:<class>          zset    tenants with waiters in a class -> virtual time
    wn                  hash    <class>:<tenant> -> KV tokens waiting, weight (`w:`)
    rules               string  what is so in each class (classes.py)
    pr                  hash    <class>:<tenant> -> promises to the refused (scripts/promise.lua)
    back:<mark>         zset    when a refused request was told to come back
    dl, mx              zset    waiting id -> deadline; running id -> longest end
    ls, in:<ingress>    zset, set    ingress -> end of its lease; the request ids it owns
    out:<ingress>       hash    running id -> output tokens that the ingress has seen of it
    rep, rep:<id>       zset, hash   replica -> end of its heartbeat; what it last reported
    room                zset    ready replica -> KV tokens not yet promised (a hint)
    gr:<ingress>        list    news for an ingress: grants and refusals of its waiters
    paid:<rid>          string  what was written of one that is gone; `told`: by its ingress
    led, aud            stream  the ledger, until it is stored; changes of keys and tenants
    sink                string  the ingress that moves the ledger into the database
    idem:<name>         string  what became of an Idempotency-Key: its run, or its reply
    idm, idz, idb       zset, hash, string   kept replies: name -> when it goes; -> bytes; their sum

Scripts are composed from the parts their first line names, sent by EVALSHA and, when Redis does not
know them, by EVAL; never by SCRIPT LOAD. No await on Redis is ever cancelled: a caller may be,
the call then ends by itself.
"""

import asyncio
import contextvars
import functools
import hashlib
import importlib.resources
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import msgspec
import structlog
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,
)

from serve_app.tenancy.composition import compose
from serve_app.tenancy.redis_client import Client, calls_to, connect
from serve_app.tenancy.redis_url import read_url
from serve_app.tenancy.refusals import StoreUnavailable

SCRIPTS = (
    "admit",
    "beat",
    "cancel",
    "cap",
    "claim",
    "conf",
    "drop",
    "keep",
    "place",
    "queue",
    "refused",
    "replay",
    "reckon",
    "restore",
    "rules",
    "seen",
    "settle",
    "share",
    "sink",
    "stop",
    "tick",
    "usage",
    "view",
    "who",
)
STABLE_KEYS = ("pool", "rules", "ls", "rep", "room", "dl", "mx", "wn", "pr", "led")
TRANSPORT_ERRORS = (ConnectionError, TimeoutError, OSError, RedisClusterException)
OUTAGE_ERRORS = (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
)
OUTAGE_WORDS = ("BUSY ", "LOADING ", "MISCONF ", "NOREPLICAS ", "OOM ", "READONLY ")
"""Also found inside a message, where a script was stopped by them."""

log = structlog.get_logger(__name__)


class StoreError(RuntimeError):
    """Redis refused a command as such: a fault of this program, not an outage."""


class Script(msgspec.Struct, frozen=True):
    """One script, composed, with its SHA-1."""

    text: str
    sha: str


class Breaker:
    """Opens for a moment after two failures in a row: an outage shall cost each caller little."""

    def __init__(self, open_s: float = 0.25, *, tells: bool = True) -> None:
        """`tells`: whether it logs that Redis went away and came back."""
        self._open_s, self._tells = open_s, tells
        self._failures, self._failed_at = 0, 0.0

    def check(self) -> None:
        """Raises StoreUnavailable while the breaker is open."""
        if self._failures >= 2 and time.monotonic() < self._failed_at + self._open_s:
            raise StoreUnavailable("breaker open")

    def succeeded(self) -> None:
        if self._failures >= 2 and self._tells:
            log.info("redis_back")
        self._failures = 0

    def failed(self, began: float, reason: str) -> None:
        """Calls that were under way together when Redis went silent count as one failure."""
        if self._failures and began < self._failed_at:
            return
        self._failures += 1
        self._failed_at = time.monotonic()
        if self._failures == 2 and self._tells:
            log.warning("redis_away", reason=reason)


class Store:
    """One pool's Redis, from one event loop."""

    def __init__(
        self,
        url: str,
        pool: str = "main",
        *,
        timeout_s: float = 0.45,
        connections: int = 8,
        clock: Callable[[], int] | None = None,
        tells_outages: bool = True,
    ) -> None:
        """`url`: see redis_url.py; raises RedisUrlError. `timeout_s`: the longest silence of one
        attempt; a call makes two. `connections`: to each node of a cluster; any other Redis has
        one. `clock`: microseconds, for tests only; else every script reads Redis's own clock.
        `tells_outages`: in the log, once each; not for a store of one call."""
        self.pool, self.prefix = pool, f"dr:2:{{{pool}}}:"
        self._target = read_url(url)
        self._timeout_s, self._clock = timeout_s, clock
        self._calls = calls_to(self._target, silence_s=timeout_s, connections=connections)
        self._keys = [self.prefix + name for name in STABLE_KEYS]
        self._breaker = Breaker(tells=tells_outages)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def aclose(self) -> None:
        """Waits for calls under way, then closes the connections."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)
        await self._calls.aclose()

    async def __aenter__(self) -> "Store":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def start(self, script: str, *args: str | int) -> asyncio.Task[Any]:
        """Runs a script in a task that is nobody's child: cancelling the caller leaves it be.

        The task raises StoreUnavailable (no answer, twice; or Redis cannot write) or StoreError.
        """
        return self._detach(self._run(script, args))

    async def run(self, script: str, *args: str | int) -> Any:
        """`start`, awaited."""
        return await asyncio.shield(self.start(script, *args))

    async def command(self, *args: str | int | bytes) -> Any:
        """One plain command; raises as `start` does."""
        return await asyncio.shield(self._detach(self._ask(args)))

    def grants(self, ingress: str) -> "GrantReader":
        """The list of `ingress`, read over a connection of its own."""
        client = connect(
            self._target, timeout_s=3.0, connect_timeout_s=self._timeout_s, connections=1
        )
        return GrantReader(client, f"{self.prefix}gr:{ingress}")

    def _detach(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen: the caller may have gone

    async def _run(self, name: str, args: tuple[str | int, ...]) -> Any:
        script = scripts()[name]
        given = self._clock() if self._clock else ""
        tail = (len(self._keys), *self._keys, given, *args)
        try:
            return await self._ask(("EVALSHA", script.sha, *tail))
        except NoScriptError:
            return await self._ask(("EVAL", script.text, *tail))

    async def _attempt(self, args: tuple[Any, ...]) -> Any:
        """Twice: the first connection may be stale. Every script bears repetition."""
        failures = 0
        while True:
            self._breaker.check()
            began = time.monotonic()
            try:
                answer = await self._calls.call(args)
            except TRANSPORT_ERRORS as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                self._breaker.succeeded()
                return answer
            self._breaker.failed(began, reason)
            failures += 1
            if failures == 2:
                raise StoreUnavailable(reason)

    async def _ask(self, args: tuple[Any, ...]) -> Any:
        """`_attempt` with Redis's own errors sorted into outages and faults."""
        try:
            return await self._attempt(args)
        except NoScriptError:
            raise
        except RedisError as error:
            if isinstance(error, OUTAGE_ERRORS) or any(w in str(error) for w in OUTAGE_WORDS):
                raise StoreUnavailable(str(error)) from None
            raise StoreError(str(error)) from error


class GrantReader:
    """One blocking read for all waiters of an ingress."""

    BLOCK_S = 1

    def __init__(self, client: Client, key: str) -> None:
        self._client, self._key = client, key

    async def read(self) -> list[str]:
        """What has been pushed, oldest first; empty after a second of silence.

        Raises:
            StoreUnavailable: the connection failed.
        """
        try:
            first = await self._await(self._client.blpop([self._key], timeout=self.BLOCK_S))
            if first is None:
                return []
            rest = await self._await(self._client.lpop(self._key, 256))
        except (*TRANSPORT_ERRORS, ResponseError) as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from None
        return [first[1], *(rest or [])]

    async def _await(self, call: Awaitable[Any] | Any) -> Any:
        return await cast(Awaitable[Any], call)

    async def aclose(self) -> None:
        await self._client.aclose()


@functools.cache
def scripts() -> dict[str, Script]:
    """All scripts by name, each composed from the parts its `-- uses:` line names."""
    folder = importlib.resources.files(__package__) / "scripts"
    texts = {name: compose(folder, name) for name in SCRIPTS}
    return {name: Script(text, _sha1(text)) for name, text in texts.items()}


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
