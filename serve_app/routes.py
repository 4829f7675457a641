"""The HTTP surface: which paths there are, who may call them, what they answer.

Owns paths, methods, authentication and response headers. Default deny: every route demands a key
before it reads a body; the public ones are listed in PUBLIC_PATHS. What a route does is elsewhere.
Runs under Ray Serve and under any ASGI server alike.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.responses import PlainTextResponse, Response

from serve_app.admin.routes import admin_routes
from serve_app.answering import Answering, Asked
from serve_app.chat_service import ChatService
from serve_app.completion_service import CompletionService
from serve_app.desk import Desk
from serve_app.docs import PUBLIC_PATHS as DOCS_PATHS
from serve_app.docs import chat_route, completion_route, install_docs
from serve_app.free_routes import free_routes
from serve_app.http_errors import install_error_handlers
from serve_app.ledger.reader import UsageReader
from serve_app.metrics import ReplicaLoad
from serve_app.once import Once
from serve_app.openai import errors
from serve_app.openai.completion_schema import parse_completion_request
from serve_app.openai.openapi import ANYWHERE, error_responses
from serve_app.openai.schema import parse_chat_request
from serve_app.refusal_errors import api_error
from serve_app.tenancy.admission import Identity
from serve_app.tenancy.key_admin import KeyAdmin
from serve_app.tenancy.refusals import Refusal, StoreUnavailable
from serve_app.token_service import TokenService
from serve_app.usage_routes import usage_routes

PUBLIC_PATHS = ("/health", "/ready", "/metrics", "/version", *DOCS_PATHS)
_COLD_START_S = 10.0
_VERSION = version("deeprequest")


class ClusterView(NamedTuple):
    """The replicas, the queue and the ledger's way into the database at one instant."""

    replicas: list[ReplicaLoad]
    queued: int
    ledger_waiting: int = 0
    ledger_dropped: int = 0


def create_app(
    desk: Desk,
    once: Once,
    view: Callable[[], Awaitable[ClusterView]],
    keys: KeyAdmin,
    usage: UsageReader,
    replicas_alone: Callable[[], int] = lambda: 0,
) -> FastAPI:
    """The application. `view` raises StoreUnavailable when Redis does not answer; `replicas_alone`:
    the replicas known of, while requests are let in without it."""
    app = FastAPI(
        title="DeepRequest",
        version=_VERSION,
        description="DeepSeek R1 32B behind an OpenAI-compatible API.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # its Location would be made of the client's Host header
    )
    install_error_handlers(app)
    install_docs(app)
    chat = ChatService(desk)
    app.include_router(_public(desk, view, replicas_alone))
    app.include_router(free_routes(desk, TokenService(desk, chat)))
    app.include_router(_text(desk, chat, Answering(desk, once)))
    app.include_router(admin_routes(desk.lookup, keys))
    app.include_router(usage_routes(desk, usage))
    return app


def _public(
    desk: Desk, view: Callable[[], Awaitable[ClusterView]], replicas_alone: Callable[[], int]
) -> APIRouter:
    router = APIRouter(tags=["Operation"])

    @router.head("/health", include_in_schema=False)
    @router.get(
        "/health",
        summary="Whether this process answers",
        responses=error_responses(*ANYWHERE),
    )
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get(
        "/ready",
        summary="Whether a model replica has completed an engine step",
        responses=error_responses(*ANYWHERE),
    )
    async def ready() -> dict[str, Any]:
        if known := replicas_alone():
            return {"status": "degraded", "replicas": known}
        try:
            replicas = (await view()).replicas
        except Refusal as refusal:
            raise api_error(refusal) from None
        count = sum(replica.ready for replica in replicas)
        if not count:
            raise errors.no_replica(_COLD_START_S)
        return {"status": "ready", "replicas": count}

    @router.head("/metrics", include_in_schema=False)
    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=PlainTextResponse,
        responses=error_responses(*ANYWHERE),
    )
    async def metrics() -> Response:
        try:
            load = await view()
        except StoreUnavailable:
            load = None
        text = desk.metrics.exposition(load)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.head("/version", include_in_schema=False)
    @router.get("/version", summary="What runs here", responses=error_responses(*ANYWHERE))
    async def version_of() -> dict[str, str]:
        return {"version": _VERSION}

    return router


def _text(desk: Desk, chat: ChatService, answering: Answering) -> APIRouter:
    Caller = Annotated[Identity, Depends(answering.identify)]
    router = APIRouter(prefix="/v1", dependencies=[Depends(answering.identify)])
    completion = CompletionService(desk)

    def understand_chat(caller: Identity, body: bytes) -> Asked:
        parsed = parse_chat_request(body).with_defaults(caller.defaults)
        return Asked(partial(chat.begin, parsed), parsed.request.stream, parsed.ignored)

    def understand_completion(body: bytes) -> Asked:
        parsed = parse_completion_request(body)
        return Asked(partial(completion.begin, parsed), parsed.request.stream, parsed.ignored)

    @router.post("/chat/completions", **chat_route(desk.facts.id))
    async def chat_completions(request: Request, caller: Caller) -> Response:
        return await answering.respond(request, caller, partial(understand_chat, caller))

    @router.post("/completions", **completion_route(desk.facts.id))
    async def completions(request: Request, caller: Caller) -> Response:
        return await answering.respond(request, caller, understand_completion)

    return router
