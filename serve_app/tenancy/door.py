"""Door: admission, with Redis and without it.

Owns which of the two lets a request in now, what is remembered for the second, and that each change
is told once. With Redis the queue decides (admission.py). Without it `closed` refuses everything;
`degraded` serves the keys that Redis has vouched for in the last minutes, within this ingress's
share (degraded.py), and keeps what they used in a journal until Redis has heard of it.

    Redis answers ── a call fails twice ──► alone ── SHARE is answered ──► keys, RESTORE, REPLAY
        ▲                                                                            │
        └────────────────────────────────────────────────────────────────────────────┘
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from serve_app.tenancy.admission import AdmissionQueue, AdmitRequest, Identity
from serve_app.tenancy.admit_reply import QueuePlace
from serve_app.tenancy.degraded import Held, LocalAdmission, Share, Wish
from serve_app.tenancy.journal import Entry
from serve_app.tenancy.journals import Journals
from serve_app.tenancy.refusals import QuotaExhausted, StoreUnavailable, Unauthorized
from serve_app.tenancy.secret import digest_of
from serve_app.tenancy.session import Lease, News
from serve_app.tenancy.store import Store, StoreError
from serve_app.tenancy.ticket import Ticket
from serve_app.tenancy.vouched_keys import VouchedKeys

LOOK_S = 1.0
LOOK_AGAIN_S = 0.25
OTHERS_S = 0.6
"""When Redis is back, other ingresses and the replicas tell it what runs before anybody asks it for
more: until then it knows less than is taken."""

log = structlog.get_logger(__name__)


class DoorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What happens while Redis is away."""

    journal_dir: Path | None = None
    """None: the door is closed then."""
    trust_keys_s: float = 300.0
    """A key is served for so long after Redis last vouched for it."""


class _Alone(msgspec.Struct, frozen=True):
    """A request let in without Redis."""

    asked: str
    """The id under which its owner knows it."""
    lease: Lease
    began: float
    give_back: Callable[[int, int], None]


class Door:
    """What an ingress asks, whatever the state of Redis."""

    def __init__(
        self, queue: AdmissionQueue, store: Store, pepper: bytes, settings: DoorSettings
    ) -> None:
        self._queue, self._store, self._pepper = queue, store, pepper
        self._settings = settings
        self._keys = VouchedKeys(settings.trust_keys_s)
        self._share: Share | None = None
        self._held: list[Held] = []
        self._local: LocalAdmission | None = None
        self._away_since = 0.0
        self._alone: dict[str, _Alone] = {}
        self._journals: Journals | None = None
        self._look_now = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self.admitted_alone = 0
        """Requests let in without Redis since the start."""

    async def start(self) -> None:
        """Takes the lease, opens the journal.

        Raises:
            StoreUnavailable, KeyFileError, JournalError: it cannot.
        """
        await self._queue.start()
        if self._settings.journal_dir is not None:
            self._journals = Journals(self._settings.journal_dir, self.ingress)
        self._learn_share(await self._ask_share())
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Tells Redis what it can still be told, keeps the rest on disk."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._journals is not None:
            with contextlib.suppress(StoreUnavailable, StoreError):
                await self._journals.replay(self._store)
            self._journals.close()
        await self._queue.stop()

    async def __aenter__(self) -> "Door":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def ingress(self) -> str:
        """This incarnation's id in Redis."""
        return self._queue.ingress

    @property
    def degraded(self) -> bool:
        """Whether requests are let in without Redis now."""
        return self._local is not None

    @property
    def journal_bytes(self) -> int:
        """Of requests that Redis has not heard of yet."""
        return self._journals.unheard_bytes if self._journals is not None else 0

    def replicas_alone(self) -> int:
        """Ready replicas when Redis last told, while keys are served without it; else 0."""
        trusted = time.monotonic() < self._away_since + self._settings.trust_keys_s
        return self._share.ready if self._local and self._share and trusted else 0

    async def identify(self, secret: str, *, fresh: bool = False) -> Identity:
        """Whose secret it is; see `AdmissionQueue.identify`. Raises Unauthorized, StoreUnavailable:
        without Redis for keys that it has not vouched for lately, and whenever `fresh` is asked."""
        digest = digest_of(secret, self._pepper)
        if self._local is None:
            try:
                identity = await self._queue.identify(secret, fresh=fresh)
            except Unauthorized:
                self._keys.drop(digest)
                raise
            except StoreUnavailable as away:
                if not self._go_alone(away):
                    raise
            else:
                self._keys.note(identity)
                return identity
        if fresh:
            raise StoreUnavailable("only Redis can tell")
        return self._keys.find(digest)

    async def admit(
        self, request: AdmitRequest, on_queued: Callable[[QueuePlace], None] | None = None
    ) -> Ticket:
        """A ticket, from Redis or from this ingress's share; see `AdmissionQueue.admit`."""
        if self._local is None:
            try:
                ticket = await self._queue.admit(request, on_queued)
            except (Unauthorized, QuotaExhausted):
                self._keys.drop(request.digest)  # nor is it served without Redis
                raise
            except StoreUnavailable as away:
                if not self._go_alone(away):
                    raise
            else:
                if self._share is not None and not self._share.ready:
                    self._look_now.set()  # what runs it came after the last look
                return ticket
        return self._admit_alone(request)

    async def place(self, rid: str) -> QueuePlace | None:
        """Where `rid` stands now; None when it does not wait. Raises StoreUnavailable."""
        return None if self._local is not None else await self._queue.place(rid)

    async def stop_request(self, rid: str, key_id: str) -> bool:
        """See `AdmissionQueue.stop_request`; without Redis only what runs here can be stopped."""
        mine = (one.lease for one in self._alone.values() if one.asked == rid)
        lease = next((lease for lease in mine if lease.key_id == key_id), None)
        if lease is None:
            return await self._queue.stop_request(rid, key_id)
        lease.stop("cancelled")
        return True

    def _admit_alone(self, request: AdmitRequest) -> Ticket:
        local, identity = self._local, self._keys.find(request.digest)
        assert local is not None, "somebody went alone"
        wish = Wish(
            key_id=identity.key_id,
            tenant=identity.tenant,
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.max_tokens,
            figures=identity.figures,
        )
        limits, tenant_limits = identity.limits, identity.tenant_limits
        let_in = local.admit(wish, limits, tenant_limits, self._running())
        lease = self._lease(request, identity, let_in.kv)
        self._queue.session.runs(lease)
        self._alone[lease.rid] = _Alone(request.rid, lease, time.monotonic(), let_in.give_back)
        self.admitted_alone += 1
        return Ticket(self, lease, News("run"), let_in.figures, 0.0)

    def _lease(self, request: AdmitRequest, identity: Identity, kv: int) -> Lease:
        settings = self._queue.settings
        return Lease(
            # not the id that Redis may have admitted without our hearing of it: that is cancelled
            rid=f"{request.rid}-alone",
            digest=request.digest,
            key_id=identity.key_id,
            tenant=identity.tenant,
            weight=1,
            # no higher: where its key's ceiling is, Redis knows
            service_class="batch" if request.service_class == "batch" else "default",
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.max_tokens,
            kv=kv,
            longest_us=round(settings.longest_run_s * 1e6),
            model=settings.model,
            price=settings.told_price(),
            ended=asyncio.Event(),
        )

    def end(self, rid: str, script: str, *args: str | int) -> asyncio.Future[None]:
        """As `Session.end`, for the tickets given without Redis: SETTLE's arguments go into the
        journal at once."""
        one = self._alone.pop(rid)
        self._queue.session.forget_run(rid)
        _, outcome, prompt, cached, output, reasoning = args
        one.give_back(int(prompt), int(output))
        entry = Entry(
            rid=rid,
            digest=one.lease.digest,
            key_id=one.lease.key_id,
            tenant=one.lease.tenant,
            service_class=one.lease.service_class,
            model=one.lease.model,
            price=one.lease.price,
            outcome=str(outcome),
            prompt=int(prompt),
            cached=int(cached),
            output=int(output),
            reasoning=int(reasoning),
            ran_ms=round((time.monotonic() - one.began) * 1000),
        )
        assert self._journals is not None, "only a degraded door lets in alone"
        self._journals.append(entry)
        self._look_now.set()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def _running(self) -> list[Held]:
        leases = self._queue.session.leases
        return [Held(lease.key_id, lease.tenant, lease.kv) for lease in leases]

    def _go_alone(self, away: StoreUnavailable) -> bool:
        """Whether requests are let in without Redis from now on."""
        if self._local is None and self._journals is not None and self._share is not None:
            left_s = self._queue.session.lease_left_s()
            self._local = LocalAdmission(self._share, self._held, lease_left_s=left_s)
            self._away_since = time.monotonic()
            log.warning("admission_degraded", reason=away.reason, ingresses=self._share.ingresses)
            self._look_now.set()
        return self._local is not None

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if self._local is None else LOOK_AGAIN_S):
                    await self._look_now.wait()
            self._look_now.clear()
            try:
                await self._look()
            except StoreUnavailable as away:
                self._go_alone(away)
                await asyncio.sleep(LOOK_AGAIN_S)
            except (StoreError, OSError) as error:
                log.error("door_failed", error=str(error))
                await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        """SHARE, and what follows from an answer. Raises StoreUnavailable."""
        if self._journals is not None:
            await self._journals.sync()
        share = await self._ask_share()
        if self._local is not None:
            await self._queue.session.rebuild()  # keys, and what runs here, before the first ADMIT
            await asyncio.sleep(OTHERS_S)
            await self._queue.session.rebuild()  # what was let in meanwhile
            self._local = None
            away_s = round(time.monotonic() - self._away_since, 1)
            log.info("admission_restored", away_s=away_s, admitted_alone=self.admitted_alone)
        self._learn_share(share)
        if self._journals is not None:
            await self._journals.replay(self._store)

    async def _ask_share(self) -> Share:
        return Share(*await self._store.run("share"))

    def _learn_share(self, share: Share) -> None:
        self._share, self._held = share, self._running()
