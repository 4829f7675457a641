"""AdmissionQueue: the way in, as an ingress sees it.

Owns turning ADMIT's answer into a Ticket or a Refusal, waiting in between, and the promise that
whatever was taken is given back exactly once, also when the caller is cancelled at any await.
Refuses to know HTTP and the engine; decides nothing that scripts/admit.lua decides.

    admit ── ADMIT ──► run ────────────────────────► Ticket ── settle ── SETTLE
               │        ▲ pushed by whoever frees capacity
               ├─► wait ┴► deadline ► Overloaded, NoReplica
               └─► refused ► Unauthorized, RateLimited, CostAboveBurst, Overloaded, NoReplica
"""

import asyncio
import random
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from serve_app.tenancy.keys import KeyBook, KeyFile, KeyFileError, digest_of, publish
from serve_app.tenancy.limiter import read_figures
from serve_app.tenancy.refusals import (
    CostAboveBurst,
    Figures,
    NoReplica,
    Overloaded,
    RateLimited,
    Refusal,
    StoreUnavailable,
    Unauthorized,
)
from serve_app.tenancy.session import Lease, News, Session, SessionSettings
from serve_app.tenancy.store import Store

RID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
GRACE_S = 2.0
"""Redis ends waits; an ingress does so itself only when no news came for so long after it."""
TRUST_S = 1.0
"""How long `identify` may answer from memory."""
MOST_REMEMBERED = 10_000

log = structlog.get_logger(__name__)


class AdmissionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the queue, and the session's rhythm."""

    max_queued: int = 1024
    """Waiters in the whole pool."""
    queue_timeout_s: float = 60.0
    """Longest wait where replicas are there but taken."""
    cold_start_s: float = 20.0
    """Longest wait where no replica is ready; 0 refuses at once."""
    longest_run_s: float = 3600.0
    """After so long a running request that nobody settled is taken for lost."""
    session: SessionSettings = SessionSettings()


class Identity(msgspec.Struct, frozen=True):
    """Whose key it is."""

    key_id: str
    tenant: str
    digest: str
    figures: Figures


class AdmitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request that wants in.

    Raises:
        ValueError: the id has other letters than A-Za-z0-9_- or a count is out of bounds.
    """

    rid: str
    digest: str
    prompt_tokens: int
    max_tokens: int
    """The most output it may produce, all choices together."""
    deadline_s: float | None = None
    """The client's patience, when shorter than the queue's."""

    def __post_init__(self) -> None:
        if RID.fullmatch(self.rid) is None:
            raise ValueError("rid must have 1 to 64 letters of A-Z, a-z, 0-9, '_' and '-'")
        if not (0 <= self.prompt_tokens < 2**31 and 1 <= self.max_tokens < 2**31):
            raise ValueError("prompt_tokens or max_tokens is out of bounds")


class QueuePlace(msgspec.Struct, frozen=True):
    """Where a waiter stands."""

    position: int
    """1 is next; an upper bound while several tenants wait."""
    eta_s: float | None
    """Predicted wait; None while nothing is known."""


class Ticket:
    """A lease: the right to run one request. Settle it, always."""

    def __init__(
        self, session: Session, lease: Lease, news: News, figures: Figures, queued_s: float
    ) -> None:
        self._session, self._lease = session, lease
        self._settled: asyncio.Future[None] | None = None
        self.rid, self.key_id, self.tenant = lease.rid, lease.key_id, lease.tenant
        self.fence = news.fence
        """Grows with every grant of the pool."""
        self.replica = news.replica or None
        """The replica with most room: a hint."""
        self.kv_need = lease.kv
        """KV tokens reserved for it."""
        self.queued_s = queued_s
        self.figures = figures

    @property
    def ended(self) -> asyncio.Event:
        """Set when Redis took the lease back because it ran past its longest time."""
        return self._lease.ended

    def rate_limit_headers(self) -> dict[str, str]:
        """`x-ratelimit-*` as they stand after this request's reservation."""
        return self.figures.headers()

    def settle(
        self,
        *,
        prompt_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
        outcome: str = "ok",
    ) -> asyncio.Future[None]:
        """Charges what was used, refunds the rest, frees the slot; outcome: ok, abort or error.

        Returns at once; the work runs by itself and outlives the caller. The result may be awaited
        (done when Redis has heard it), cancelled or dropped. Only the first call counts.
        """
        if outcome not in ("ok", "abort", "error"):
            raise ValueError("outcome is ok, abort or error")
        if self._settled is None:
            counts = (prompt_tokens, cached_tokens, output_tokens)
            self._settled = self._session.end(self.rid, "settle", self.rid, outcome, *counts)
        return self._settled


class AdmissionQueue:
    """Admission for one ingress replica, on its event loop."""

    def __init__(
        self, store: Store, keys: KeyFile, pepper: bytes, settings: AdmissionSettings | None = None
    ) -> None:
        self._store, self._keys, self._pepper = store, keys, pepper
        self.settings = settings or AdmissionSettings()
        self._book: KeyBook | None = None
        self._stamp = 0
        self._session = Session(store, self._load_keys, self._keys_changed, self.settings.session)
        self._known: dict[str, tuple[Identity, float]] = {}

    async def start(self) -> None:
        """Loads the keys and takes the ingress's lease. Raises StoreUnavailable, KeyFileError."""
        await self._session.start()

    async def stop(self) -> None:
        """Cancels what is left, waits up to 2 s for settlements, gives the lease back."""
        await self._session.stop()

    async def __aenter__(self) -> "AdmissionQueue":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def ingress(self) -> str:
        """This incarnation's id in Redis."""
        return self._session.ingress

    async def identify(self, secret: str, *, fresh: bool = False) -> Identity:
        """Whose secret it is; nothing is charged. May answer from memory for a second, unless
        `fresh`: ADMIT looks again in any case.

        Raises:
            Unauthorized: malformed, unknown, revoked or expired.
            StoreUnavailable: Redis does not answer.
        """
        digest = digest_of(secret, self._pepper)
        identity, until = self._known.get(digest, (None, 0.0))
        if identity is not None and not fresh and time.monotonic() < until:
            return identity
        reply = await self._ask_past_rebuild("who", digest)
        if reply[0] == "auth":
            self._known.pop(digest, None)
            raise Unauthorized(reply[1])
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        identity = Identity(reply[1], reply[2], digest, read_figures(reply[3:]))
        self._known[digest] = (identity, time.monotonic() + TRUST_S)
        return identity

    async def admit(
        self, request: AdmitRequest, on_queued: Callable[[QueuePlace], None] | None = None
    ) -> Ticket:
        """A ticket, at once or after a wait. `on_queued` is told the place when there is a wait.

        Raises:
            Unauthorized, RateLimited, CostAboveBurst, Overloaded, NoReplica: see refusals.py.
            StoreUnavailable: Redis does not answer.
            ValueError: the request id is in use.
        """
        news = self._session.expect(request.rid)
        began = time.monotonic()
        while True:
            reply = await self._ask(request, began)
            if reply[0] == "run":
                heard = News("run", reply[1], reply[2])
            else:
                if on_queued is not None:
                    self._announce(request.rid, on_queued, _place(reply[1], reply[2]))
                heard = await self._hear(request, news, began)
            if heard.kind == "run":
                return self._ticket(request, reply, heard, began)
            if heard.kind != "gone" or self._patience_left_s(request, began) <= 0:
                raise self._not_granted(request.rid, heard)
            news = self._session.listen_again(request.rid)

    async def place(self, rid: str) -> QueuePlace | None:
        """Where `rid` stands now; None when it does not wait. Raises StoreUnavailable."""
        position, eta_ms = await self._store.run("place", rid)
        return _place(position, eta_ms) if position else None

    async def _load_keys(self) -> str:
        stamp = self._keys.stamp()
        try:
            self._book = self._keys.read()
        except KeyFileError as error:
            if self._book is None:
                raise
            log.error("key_file_unreadable", error=str(error))  # the last good one serves on
        self._stamp = stamp
        return await publish(self._store, self._book)

    def _keys_changed(self) -> bool:
        return self._keys.stamp() != self._stamp

    async def _ask_past_rebuild(self, script: str, *args: str | int) -> list[Any]:
        reply: list[Any] = await self._store.run(script, *args)
        if reply[0] == "rebuild":
            await self._session.rebuild()
            reply = await self._store.run(script, *args)
        if reply[0] == "rebuild":
            raise StoreUnavailable("Redis was emptied again while keys were loaded")
        return reply

    async def _ask(self, request: AdmitRequest, began: float) -> list[Any]:
        """ADMIT, past a missing lease and an empty Redis: a `run` or `wait` reply."""
        limits = self.settings
        for _ in range(3):
            left_us = max(0, round(self._patience_left_s(request, began) * 1e6))
            call = self._store.start(
                "admit",
                request.digest,
                request.rid,
                self._session.ingress,
                request.prompt_tokens,
                request.max_tokens,
                left_us,
                round(limits.cold_start_s * 1e6),
                round(limits.longest_run_s * 1e6),
                limits.max_queued,
            )
            try:
                reply: list[Any] = await asyncio.shield(call)
                if reply[0] == "rebuild":
                    await self._session.rebuild()
                elif reply[0] == "lease":
                    await self._session.beat()
                elif reply[0] in ("run", "wait"):
                    return reply
                else:
                    self._session.forget(request.rid)
                    raise _refusal(reply)
            except Refusal as refusal:
                if isinstance(refusal, StoreUnavailable):  # it may have been admitted all the same
                    self._give_up(request.rid, call)
                raise
            except BaseException:
                self._give_up(request.rid, call)
                raise
        self._session.forget(request.rid)
        raise StoreUnavailable("Redis keeps losing this ingress")

    def _patience_left_s(self, request: AdmitRequest, began: float) -> float:
        longest = self.settings.queue_timeout_s
        own = longest if request.deadline_s is None else request.deadline_s
        return min(longest, own) - (time.monotonic() - began)

    async def _hear(self, request: AdmitRequest, news: asyncio.Future[News], began: float) -> News:
        patience = self.settings.queue_timeout_s + self.settings.cold_start_s + GRACE_S
        left_s = patience - (time.monotonic() - began)
        try:
            async with asyncio.timeout(left_s):
                return await news
        except TimeoutError:
            return News("full", wait_s=1.0)
        except BaseException:
            self._give_up(request.rid)
            raise

    def _announce(
        self, rid: str, on_queued: Callable[[QueuePlace], None], place: QueuePlace
    ) -> None:
        try:
            on_queued(place)
        except BaseException:
            self._give_up(rid)
            raise

    def _give_up(self, rid: str, call: asyncio.Task[Any] | None = None) -> None:
        self._session.end(rid, "cancel", rid, after=call)

    def _ticket(self, request: AdmitRequest, reply: list[Any], news: News, began: float) -> Ticket:
        _, _, _, kv, output, key_id, tenant, weight, *figures = reply
        lease = Lease(
            rid=request.rid,
            digest=request.digest,
            key_id=key_id,
            tenant=tenant,
            weight=weight,
            prompt_tokens=request.prompt_tokens,
            output_tokens=output,
            kv=kv,
            longest_us=round(self.settings.longest_run_s * 1e6),
            ended=asyncio.Event(),
        )
        self._session.runs(lease)
        queued_s = time.monotonic() - began if reply[0] == "wait" else 0.0
        return Ticket(self._session, lease, news, read_figures(figures), queued_s)

    def _not_granted(self, rid: str, heard: News) -> Refusal:
        """Redis let the waiter go (or is gone itself: then its CANCEL waits for it)."""
        self._give_up(rid)
        if heard.kind == "none":
            return NoReplica(heard.wait_s)
        if heard.kind == "away":
            return StoreUnavailable("Redis was silent too long")
        return Overloaded(_jittered(heard.wait_s))


def _refusal(reply: list[Any]) -> Refusal:
    match reply:
        case ["auth", reason]:
            return Unauthorized(reason)
        case ["burst", limit, scope, cost, most]:
            return CostAboveBurst(limit, _scope(scope), cost, most)
        case ["limit", limit, scope, wait_us, *figures]:
            return RateLimited(limit, _scope(scope), wait_us / 1e6, read_figures(figures))
        case ["full", wait_ms, *figures]:
            return Overloaded(_jittered(wait_ms / 1000), read_figures(figures))
        case ["none", wait_ms, *figures]:
            return NoReplica(wait_ms / 1000, read_figures(figures))
    raise AssertionError(f"ADMIT said {reply[0]}")


def _scope(kind: str) -> str:
    return "key" if kind == "k" else "tenant"


def _jittered(wait_s: float) -> float:
    """So that those refused together do not come back together."""
    return max(1.0, wait_s * random.uniform(0.8, 1.2))


def _place(position: int, eta_ms: int) -> QueuePlace:
    return QueuePlace(position, eta_ms / 1000 if eta_ms >= 0 else None)
