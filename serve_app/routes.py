"""The HTTP surface: which paths there are, who may call them, what they answer.

Owns paths, methods, authentication and response headers. Default deny: every route demands a key
before it reads a body; the public ones are listed in PUBLIC_PATHS. What a route does is elsewhere.
Runs under Ray Serve and under any ASGI server alike.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from serve_app.chat_run import CLIENT_LEFT
from serve_app.chat_service import ChatService
from serve_app.docs import PUBLIC_PATHS as DOCS_PATHS
from serve_app.docs import chat_route, install_docs
from serve_app.event_stream import EventStream
from serve_app.http_errors import install_error_handlers
from serve_app.metrics import Metrics, ReplicaLoad
from serve_app.openai import errors
from serve_app.openai.errors import ApiError
from serve_app.openai.schema import DEFAULT_MAX_TOKENS, MAX_TOKENS, parse_chat_request
from serve_app.refusal_errors import api_error
from serve_app.tenancy.admission import Identity
from serve_app.tenancy.refusals import Refusal, StoreUnavailable

PUBLIC_PATHS = ("/health", "/ready", "/metrics", *DOCS_PATHS)
_COLD_START_S = 10.0


class ClusterView(NamedTuple):
    """The replicas and the queue at one instant."""

    replicas: list[ReplicaLoad]
    queued: int


def create_app(service: ChatService, view: Callable[[], Awaitable[ClusterView]]) -> FastAPI:
    """The application. `view` raises StoreUnavailable when Redis does not answer."""
    app = FastAPI(
        title="DeepRequest",
        version=version("deeprequest"),
        description="DeepSeek R1 32B behind an OpenAI-compatible API.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # its Location would be made of the client's Host header
    )
    install_error_handlers(app)
    install_docs(app)
    app.include_router(_public(service, view))
    app.include_router(_models(service))
    app.include_router(_chat(service))
    return app


def _public(service: ChatService, view: Callable[[], Awaitable[ClusterView]]) -> APIRouter:
    router = APIRouter(tags=["Operation"])

    @router.head("/health", include_in_schema=False)
    @router.get("/health", summary="Whether this process answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready", summary="Whether a model replica has completed an engine step")
    async def ready() -> dict[str, Any]:
        try:
            replicas = (await view()).replicas
        except Refusal as refusal:
            raise api_error(refusal) from None
        count = sum(replica.ready for replica in replicas)
        if not count:
            raise errors.no_replica(_COLD_START_S)
        return {"status": "ready", "replicas": count}

    @router.head("/metrics", include_in_schema=False)
    @router.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        try:
            load = await view()
        except StoreUnavailable:
            load = None
        text = service.metrics.exposition(load)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _models(service: ChatService) -> APIRouter:
    async def identified(request: Request) -> Identity:
        return await service.identify(request.headers.get("authorization"))

    router = APIRouter(prefix="/v1", dependencies=[Depends(identified)])

    @router.get("/models", tags=["Models"], summary="The models served here")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_object(service)]}

    @router.get("/models/{model_id:path}", tags=["Models"], summary="One model")
    async def model(model_id: str) -> dict[str, Any]:
        if model_id != service.facts.id:
            raise errors.model_not_found()
        return model_object(service)

    return router


def _chat(service: ChatService) -> APIRouter:
    async def identified(request: Request) -> Identity:
        with _counted(service.metrics):
            return await service.identify(request.headers.get("authorization"))

    Caller = Annotated[Identity, Depends(identified)]
    router = APIRouter(prefix="/v1", dependencies=[Depends(identified)])

    @router.post("/chat/completions", **chat_route(service.facts.id))
    async def chat_completions(request: Request, caller: Caller) -> Response:
        with _counted(service.metrics):
            parsed = parse_chat_request(await request.body())
            reply = await service.begin(parsed, caller, _patience_s(request))
        if reply.request.stream:
            return EventStream(reply)
        body = await reply.body()
        return Response(body, headers={"content-type": "application/json", **reply.headers})

    return router


def model_object(service: ChatService) -> dict[str, Any]:
    """OpenAI's fields, and what a client wants to know before it asks."""
    facts = service.facts
    return {
        "id": facts.id,
        "object": "model",
        "created": facts.created,
        "owned_by": "deeprequest",
        "context_length": facts.max_model_len,
        "max_model_len": facts.max_model_len,
        "served_by": facts.shown_name or facts.id,
        "default_sampling": {"temperature": 0.6, "top_p": 0.95},
        "limits": {"max_tokens": MAX_TOKENS, "default_max_tokens": DEFAULT_MAX_TOKENS},
    }


@contextlib.contextmanager
def _counted(metrics: Metrics) -> Iterator[None]:
    """Counts a chat request that ends in here, before it is a run: a run counts itself."""
    try:
        yield
    except ApiError as error:
        metrics.answered(error.status)
        raise
    except (ClientDisconnect, asyncio.CancelledError):
        metrics.answered(CLIENT_LEFT)
        raise
    except Exception:
        metrics.answered(500)
        raise


def _patience_s(request: Request) -> float | None:
    """The client's own timeout, in seconds, as the openai SDK declares it."""
    declared = request.headers.get("x-stainless-read-timeout", "")
    try:
        seconds = float(declared)
    except ValueError:
        return None
    return seconds if 0 < seconds < 1e6 else None
