"""Ingress: the Serve deployment that clients reach.

Owns what an ingress replica starts and stops: its admission session, its delta server, its handle
to the model, the ASGI application. Holds no state that another ingress would miss; never imports
torch.
"""

import asyncio
import gc
from pathlib import Path
from typing import Any

import structlog
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address
from starlette.types import ASGIApp

from cluster.request import EngineStats
from cluster.text.template import ChatTemplate
from cluster.text.tokenizer import Tokenizer
from serve_app.config import ServeConfig
from serve_app.cors import Cors
from serve_app.deltas import DeltaServer, ReplicaLostError
from serve_app.desk import Desk, ModelFacts
from serve_app.fingerprint import Fingerprint
from serve_app.http_limits import HttpLimits
from serve_app.kernel_watch import KernelWatch
from serve_app.ledger.database import LedgerDatabase
from serve_app.ledger.reader import UsageReader
from serve_app.ledger.sink import LedgerSink
from serve_app.metrics import Metrics
from serve_app.once import Once
from serve_app.routes import ClusterView, create_app
from serve_app.sections import PriceSection
from serve_app.tenancy.admission import AdmissionQueue, AdmissionSettings
from serve_app.tenancy.capacity import ReplicaRecord
from serve_app.tenancy.door import Door, DoorSettings
from serve_app.tenancy.key_admin import KeyAdmin
from serve_app.tenancy.key_file import KeyFile
from serve_app.tenancy.price import MICRO, Price
from serve_app.tenancy.replies import Replies, ReplySettings
from serve_app.tenancy.secret import load_pepper
from serve_app.tenancy.session import SessionSettings
from serve_app.tenancy.store import Store

_MOST_WAITING = 10_000
"""Ledger entries in Redis above which usage is not told over HTTP: about 0.1 s of this process."""

log = structlog.get_logger(__name__)


class ServeModelClient:
    """A model replica behind a Serve handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def submit(self, submission: bytes) -> None:
        """See `serve_app.generation.ModelClient`."""
        try:
            await self._handle.submit.remote(submission)
        except RequestCancelledError:  # the client is gone; its handler is cancelled as well
            raise asyncio.CancelledError from None
        except (RayError, RayServeException) as error:
            raise ReplicaLostError(type(error).__name__) from None


class Ingress:
    """One ingress replica."""

    async def __init__(  # type: ignore[misc]
        self, values: dict[str, Any], model: DeploymentHandle, version: int
    ) -> None:
        """`version`: of the configuration; the newest one's rules hold for all ingresses."""
        config = ServeConfig.model_validate(values)
        assert config.admission.redis_url is not None, "the builder fills it in"
        self._store = Store(
            config.admission.redis_url,
            config.admission.pool,
            timeout_s=config.admission.redis_timeout_s,
        )
        pepper = load_pepper(config.pepper_path)
        keys = KeyFile(config.tenants_path, pepper)
        self._keys = KeyAdmin(self._store, keys)
        queue = AdmissionQueue(self._store, keys, pepper, _admission_settings(config, version))
        self._door = Door(queue, self._store, pepper, _door_settings(config))
        self._deltas = DeltaServer(
            config.deltas.host or get_node_ip_address(),
            range(config.deltas.min_port, config.deltas.max_port + 1),
        )
        tokenizer = Tokenizer(config.model.path)
        ChatTemplate(tokenizer).verify()
        metrics = Metrics(self._door.ingress, self._door)
        words = config.model.closing_words
        fingerprint = Fingerprint(config.engine_config(), closing_words=words)
        self._desk = Desk(
            model_facts(config, tokenizer, fingerprint.name()),
            config.http,
            tokenizer,
            self._door,
            ServeModelClient(model),
            self._deltas,
            metrics,
        )
        self._desk.gate.start()
        replies = Replies(self._store, self._door.ingress, _reply_settings(config))
        self._once = Once(replies, metrics, config.http.stall_timeout_s)
        await asyncio.gather(self._door.start(), self._deltas.start())
        self._ledger = LedgerDatabase(config.ledger.url) if config.ledger.url else None
        self._sink = _started_sink(self._ledger, self._store, self._door.ingress)
        self._watch = KernelWatch(self._store, fingerprint, self._rename)
        self._watching = asyncio.create_task(self._watch.run())
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection between tokens need walk it again

    def __serve_build_asgi_app__(self) -> ASGIApp:
        http = self._desk.http
        usage = UsageReader(self._store, self._ledger, most_waiting=_MOST_WAITING)
        alone = self._door.replicas_alone
        app = create_app(self._desk, self._once, self._view, self._keys, usage, alone)
        bounded = HttpLimits(app, max_body_bytes=http.max_body_bytes, server_echoes_request_id=True)
        return Cors(bounded, http.cors_origins) if http.cors_origins else bounded

    async def _view(self) -> ClusterView:
        totals, records = await self._watch.view()
        return ClusterView(
            replicas=[_RecordLoad(record) for record in records],
            queued=totals.waiting,
            ledger_waiting=totals.ledger_waiting,
            ledger_dropped=totals.ledger_dropped,
        )

    def _rename(self, fingerprint: str) -> None:
        self._desk.facts = self._desk.facts._replace(fingerprint=fingerprint)


class _RecordLoad:
    """A replica's record in Redis, as metrics read it."""

    def __init__(self, record: ReplicaRecord) -> None:
        self.replica = record.id
        self.ready = record.state == "ready"
        self.stats = EngineStats(**record.info.get("stats", {}))


def model_facts(config: ServeConfig, tokenizer: Tokenizer, fingerprint: str) -> ModelFacts:
    """What the checkpoint and the configuration say of the model."""
    engine = config.engine_config()
    longest = tokenizer.read_config("config.json").get("max_position_embeddings", 0)
    return ModelFacts(
        id=config.model.id,
        fingerprint=fingerprint,
        max_model_len=engine.max_model_len or longest,
        created=int((Path(config.model.path) / "config.json").stat().st_mtime),
        shown_name=config.model.name,
        price=config.model.price,
        closing_words=config.model.closing_words,
    )


def _started_sink(
    database: LedgerDatabase | None, store: Store, ingress: str
) -> asyncio.Task[None] | None:
    """What keeps the ledger for good, on this event loop; None where no database is named."""
    if database is None:
        log.warning("ledger_not_kept", remedy="set ledger.url or DEEPREQUEST_LEDGER_URL")
        return None
    return asyncio.create_task(LedgerSink(store, database, ingress).run())


def _admission_settings(config: ServeConfig, version: int) -> AdmissionSettings:
    admission = config.admission
    return AdmissionSettings(
        max_queued=admission.max_queued,
        queue_timeout_s=admission.queue_timeout_s,
        kv_reserve=(admission.kv_reserve_least, admission.kv_reserve_most),
        classes=admission.classes,
        rules_version=version,
        model=config.model.id,
        price=_price(config.model.price) if config.model.price is not None else None,
        session=SessionSettings(lease_s=admission.lease_s),
    )


def _door_settings(config: ServeConfig) -> DoorSettings:
    return DoorSettings(journal_dir=config.journal_dir, trust_keys_s=config.admission.trust_keys_s)


def _price(section: PriceSection) -> Price:
    """Of a million tokens, in whole micro-units: the configuration allows six decimals."""
    return Price(
        currency=section.currency,
        input=int(section.input * MICRO),
        cached_input=int(section.of_cached * MICRO),
        output=int(section.output * MICRO),
    )


def _reply_settings(config: ServeConfig) -> ReplySettings:
    idempotency = config.idempotency
    return ReplySettings(
        keep_s=idempotency.keep_s,
        most_bytes=idempotency.max_bytes,
        largest_bytes=idempotency.max_reply_bytes,
        longest_run_s=config.http.default_timeout_s + config.admission.queue_timeout_s,
    )
