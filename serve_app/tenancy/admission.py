"""AdmissionQueue: the way in, as an ingress sees it.

Owns turning ADMIT's answer into a Ticket or a Refusal, waiting in between, and the promise that
whatever was taken is given back exactly once, also when the caller is cancelled at any await.
Refuses to know HTTP and the engine; decides nothing that scripts/admit.lua decides.

    admit ── ADMIT ──► run ────────────────────────► Ticket ── settle ── SETTLE
               │        ▲ pushed by whoever frees capacity
               ├─► wait ┴► deadline ► Overloaded, NoReplica
               ├─► stopped by its owner ► Stopped
               └─► refused ► Unauthorized, RateLimited, QuotaExhausted, CostAboveBurst, Overloaded,
                             NoReplica
"""

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from serve_app.sections import ClassesSection
from serve_app.tenancy.admit_reply import (
    QueuePlace,
    place_at_arrival,
    read_place,
    read_refusal,
)
from serve_app.tenancy.classes import longest_wait_s, publish_rules
from serve_app.tenancy.key_defaults import KeyDefaults, read_defaults
from serve_app.tenancy.key_file import KeyFile, KeyFileError
from serve_app.tenancy.keys import CLASSES, KeyBook
from serve_app.tenancy.limiter import Limits, read_figures, read_limits
from serve_app.tenancy.price import Price
from serve_app.tenancy.publishing import publish
from serve_app.tenancy.refusals import (
    Figures,
    NoReplica,
    Overloaded,
    Refusal,
    Stopped,
    StoreUnavailable,
    Unauthorized,
)
from serve_app.tenancy.secret import digest_of
from serve_app.tenancy.session import Lease, News, Session, SessionSettings
from serve_app.tenancy.store import Store
from serve_app.tenancy.ticket import Ticket

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
    """Longest wait where replicas are there but taken, in classes that do not say their own."""
    classes: ClassesSection = ClassesSection()
    rules_version: int = 0
    """Of the configuration that says so: Redis keeps the rules of the newest."""
    kv_reserve: tuple[float, float] = (0.4, 2.0)
    """Least and most KV cache reserved for a token of expected output."""
    cold_start_s: float = 20.0
    """Longest wait where no replica is ready; 0 refuses at once."""
    longest_run_s: float = 3600.0
    """After so long a running request that nobody settled is taken for lost."""
    model: str = ""
    """What the ledger says was asked for."""
    price: Price | None = None
    """What its tokens cost; None: nothing."""
    session: SessionSettings = SessionSettings()

    def told_price(self) -> str:
        """As the scripts read it."""
        return self.price.told() if self.price is not None else ""


class Identity(msgspec.Struct, frozen=True):
    """Whose key it is, and what it may do."""

    key_id: str
    tenant: str
    digest: str
    figures: Figures
    defaults: KeyDefaults = KeyDefaults()
    scopes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """None named: all."""
    limits: Limits = Limits()
    tenant_limits: Limits = Limits()
    """But for budgets: what of them is spent is known to Redis alone."""

    def may_use(self, model: str) -> bool:
        """Whether the key is good for that model."""
        return not self.models or model in self.models


class AdmitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request that wants in.

    Raises:
        ValueError: the id has other letters than A-Za-z0-9_-, a count is out of bounds, or there is
            no such class.
    """

    rid: str
    digest: str
    prompt_tokens: int
    max_tokens: int
    """The most output it may produce, all choices together."""
    deadline_s: float | None = None
    """The client's patience, when shorter than the queue's."""
    service_class: str = ""
    """The class it would run in; '' is `default`. Its key's ceiling may lower it."""
    mark: str = ""
    """What its content is known again by when it comes back as told; '' is not."""
    retries: int | None = None
    """How often it was sent before, where its client tells."""

    def __post_init__(self) -> None:
        if RID.fullmatch(self.rid) is None or (self.mark and RID.fullmatch(self.mark) is None):
            raise ValueError("rid and mark must have 1 to 64 letters of A-Z, a-z, 0-9, '_' and '-'")
        if not (0 <= self.prompt_tokens < 2**31 and 1 <= self.max_tokens < 2**31):
            raise ValueError("prompt_tokens or max_tokens is out of bounds")
        if self.service_class and self.service_class not in CLASSES:
            raise ValueError(f"service_class must be one of {', '.join(CLASSES)}")


class AdmissionQueue:
    """Admission for one ingress replica, on its event loop."""

    def __init__(
        self, store: Store, keys: KeyFile, pepper: bytes, settings: AdmissionSettings | None = None
    ) -> None:
        self._store, self._keys, self._pepper = store, keys, pepper
        self.settings = settings or AdmissionSettings()
        self._longest_wait_s = longest_wait_s(self.settings.classes, self.settings.queue_timeout_s)
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

    @property
    def session(self) -> Session:
        """Where what runs here is known."""
        return self._session

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
        identity = Identity(
            reply[1],
            reply[2],
            digest,
            read_figures(reply[7:19]),
            read_defaults(reply[5:7]),
            scopes=_names(reply[3]),
            models=_names(reply[4]),
            limits=read_limits(reply[19:25]),
            tenant_limits=read_limits(reply[25:]),
        )
        self._known[digest] = (identity, time.monotonic() + TRUST_S)
        return identity

    async def admit(
        self, request: AdmitRequest, on_queued: Callable[[QueuePlace], None] | None = None
    ) -> Ticket:
        """A ticket, at once or after a wait. `on_queued` is told the place when there is a wait.

        Raises:
            Unauthorized, RateLimited, QuotaExhausted, CostAboveBurst, Overloaded, NoReplica,
                Stopped: see refusals.py.
            StoreUnavailable: Redis does not answer.
            ValueError: the request id is in use.
        """
        news = self._session.expect(request.rid, request.digest)
        began = time.monotonic()
        while True:
            reply = await self._ask(request, began)
            if reply[0] == "run":
                heard = News("run", *reply[1:4])
            else:
                if on_queued is not None:
                    self._announce(request.rid, on_queued, place_at_arrival(reply))
                heard = await self._hear(request, news, began)
            if heard.kind == "run":
                if self._session.lease_left_s() > 0:
                    return self._ticket(request, reply, heard, began)
                await self._renew(request.rid)  # and ask again: was it taken back meanwhile?
            elif heard.kind != "gone" or self._patience_left_s(request, began) <= 0:
                raise self._not_granted(request.rid, heard)
            news = self._session.listen_again(request.rid, request.digest)

    async def place(self, rid: str) -> QueuePlace | None:
        """Where `rid` stands now; None when it does not wait. Raises StoreUnavailable."""
        position, eta_ms = await self._store.run("place", rid)
        return read_place(position, eta_ms) if position else None

    async def stop_request(self, rid: str, key_id: str) -> bool:
        """Ends a request of the key `key_id`, waiting or running, whichever ingress has it.

        False: the key has no such request. Raises StoreUnavailable.
        """
        if RID.fullmatch(rid) is None:
            return False
        return bool(await self._store.run("stop", rid, key_id))

    async def _load_keys(self) -> str:
        stamp = self._keys.stamp()
        try:
            self._book = await asyncio.to_thread(self._keys.read)
        except KeyFileError as error:
            if self._book is None:
                raise
            log.error("key_file_unreadable", error=str(error))  # the last good one serves on
        self._stamp = stamp
        limits = self.settings
        rules = (limits.classes, limits.queue_timeout_s, limits.kv_reserve, limits.rules_version)
        await publish_rules(self._store, *rules)
        return (await publish(self._store, self._book)).epoch

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
                request.service_class,
                limits.model,
                limits.told_price(),
                request.mark,
                -1 if request.retries is None else request.retries,
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
                    raise read_refusal(reply)
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
        longest = self._longest_wait_s
        own = longest if request.deadline_s is None else request.deadline_s
        return min(longest, own) - (time.monotonic() - began)

    async def _renew(self, rid: str) -> None:
        try:
            await self._session.beat()
        except BaseException:
            self._give_up(rid)
            raise

    async def _hear(self, request: AdmitRequest, news: asyncio.Future[News], began: float) -> News:
        patience = self._longest_wait_s + self.settings.cold_start_s + GRACE_S
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
        _, _, _, _, output, key_id, tenant, weight, service_class, *figures = reply
        lease = Lease(
            rid=request.rid,
            digest=request.digest,
            key_id=key_id,
            tenant=tenant,
            weight=weight,
            service_class=service_class,
            prompt_tokens=request.prompt_tokens,
            output_tokens=output,
            kv=news.kv,
            longest_us=round(self.settings.longest_run_s * 1e6),
            model=self.settings.model,
            price=self.settings.told_price(),
            ended=asyncio.Event(),
        )
        self._session.runs(lease)
        queued_s = time.monotonic() - began if reply[0] == "wait" else 0.0
        return Ticket(self._session, lease, news, read_figures(figures), queued_s)

    def _not_granted(self, rid: str, heard: News) -> Refusal:
        """Redis let the waiter go (or is gone itself: then its CANCEL waits for it)."""
        self._give_up(rid)
        if heard.kind == "stopped":
            return Stopped()
        if heard.kind == "revoked":
            return Unauthorized("revoked")
        if heard.kind == "none":
            return NoReplica(heard.wait_s)
        if heard.kind == "away":
            return StoreUnavailable("Redis was silent too long")
        return Overloaded(heard.wait_s)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()
