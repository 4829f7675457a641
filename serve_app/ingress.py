"""Ingress: the Serve deployment that clients reach.

Owns what an ingress replica starts and stops: its admission session, its delta server, its handle
to the model, the ASGI application. Holds no state that another ingress would miss; never imports
torch.
"""

import asyncio
import gc
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address
from starlette.types import ASGIApp

from cluster.request import EngineStats
from cluster.text.template import ChatTemplate
from cluster.text.tokenizer import Tokenizer
from serve_app.chat_service import ChatService, ModelFacts
from serve_app.config import ServeConfig
from serve_app.deltas import DeltaServer, ReplicaLostError
from serve_app.fingerprint import system_fingerprint
from serve_app.http_limits import HttpLimits
from serve_app.metrics import Metrics
from serve_app.routes import ClusterView, create_app
from serve_app.tenancy.admission import AdmissionQueue, AdmissionSettings
from serve_app.tenancy.capacity import ReplicaRecord, pool_view
from serve_app.tenancy.keys import KeyFile, load_pepper
from serve_app.tenancy.session import SessionSettings
from serve_app.tenancy.store import Store


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

    async def __init__(self, values: dict[str, Any], model: DeploymentHandle) -> None:  # type: ignore[misc]
        config = ServeConfig.model_validate(values)
        assert config.admission.redis_url is not None, "the builder fills it in"
        self._store = Store(config.admission.redis_url, config.admission.pool)
        self._queue = _admission_queue(config, self._store)
        self._deltas = DeltaServer(
            config.deltas.host or get_node_ip_address(),
            range(config.deltas.min_port, config.deltas.max_port + 1),
        )
        tokenizer = Tokenizer(config.model.path)
        ChatTemplate(tokenizer).verify()
        self._service = ChatService(
            model_facts(config, tokenizer),
            config.http,
            tokenizer,
            self._queue,
            ServeModelClient(model),
            self._deltas,
            Metrics(self._queue.ingress),
        )
        self._max_body_bytes = config.http.max_body_bytes
        await asyncio.gather(self._queue.start(), self._deltas.start())
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection between tokens need walk it again

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = create_app(self._service, self._view)
        return HttpLimits(app, max_body_bytes=self._max_body_bytes, server_echoes_request_id=True)

    async def _view(self) -> ClusterView:
        totals, records = await pool_view(self._store)
        return ClusterView([_RecordLoad(record) for record in records], totals.waiting)


class _RecordLoad:
    """A replica's record in Redis, as metrics read it."""

    def __init__(self, record: ReplicaRecord) -> None:
        self.replica = record.id
        self.ready = record.state == "ready"
        self.stats = EngineStats(**record.info.get("stats", {}))


def model_facts(config: ServeConfig, tokenizer: Tokenizer) -> ModelFacts:
    """What the checkpoint and the configuration say of the model."""
    engine = config.engine_config()
    longest = tokenizer.read_config("config.json").get("max_position_embeddings", 0)
    return ModelFacts(
        id=config.model.id,
        fingerprint=system_fingerprint(engine),
        max_model_len=engine.max_model_len or longest,
        created=int((Path(config.model.path) / "config.json").stat().st_mtime),
        shown_name=config.model.name,
    )


def _admission_queue(config: ServeConfig, store: Store) -> AdmissionQueue:
    admission = config.admission
    pepper = load_pepper(config.pepper_path)
    settings = AdmissionSettings(
        max_queued=admission.max_queued,
        queue_timeout_s=admission.queue_timeout_s,
        session=SessionSettings(lease_s=admission.lease_s),
    )
    return AdmissionQueue(store, KeyFile(config.keys_path, pepper), pepper, settings)
