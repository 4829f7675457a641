"""The routes that need a key and cost nothing: models, tokens, rendered chats, ends of requests.

Owns their paths, methods and headers. They reserve nothing and reach no model replica.
"""

from collections.abc import Iterable
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from serve_app.desk import Desk
from serve_app.model_object import model_object
from serve_app.openai import errors
from serve_app.openai.cancelling import cancel_route, cancelled_body
from serve_app.openai.schema import parse_chat_request
from serve_app.openai.token_reference import (
    detokenize_route,
    model_route,
    models_route,
    render_route,
    tokenize_route,
)
from serve_app.openai.tokens import parse_detokenize_request, parse_tokenize_request
from serve_app.tenancy.admission import Identity
from serve_app.token_service import TokenService


def free_routes(desk: Desk, tokens: TokenService) -> APIRouter:
    """The routes; each demands a key before it reads a body."""

    router = APIRouter()
    router.include_router(_models(desk))
    router.include_router(_inference(desk, tokens))
    return router


def _models(desk: Desk) -> APIRouter:
    """Any key may ask what it may ask for."""

    async def identified(request: Request) -> Identity:
        return await desk.identify(request.headers.get("authorization"))

    Caller = Annotated[Identity, Depends(identified)]
    router = APIRouter(dependencies=[Depends(identified)])

    @router.get("/v1/models", **models_route())
    async def models(caller: Caller) -> Response:
        usable = caller.may_use(desk.facts.id)
        found = [model_object(desk.facts, caller.figures)] if usable else []
        return _json(orjson.dumps({"object": "list", "data": found}), caller)

    @router.get("/v1/models/{model_id:path}", **model_route())
    async def model(model_id: str, caller: Caller) -> Response:
        if model_id != desk.facts.id or not caller.may_use(model_id):
            raise errors.model_not_found()
        return _json(orjson.dumps(model_object(desk.facts, caller.figures)), caller)

    return router


def _inference(desk: Desk, tokens: TokenService) -> APIRouter:
    async def identified(request: Request) -> Identity:
        return await desk.identify(request.headers.get("authorization"), "inference")

    Caller = Annotated[Identity, Depends(identified)]
    router = APIRouter(dependencies=[Depends(identified)])

    @router.post("/tokenize", **tokenize_route())
    async def tokenize(request: Request, caller: Caller) -> Response:
        body = await request.body()
        parsed = parse_tokenize_request(body, tokens.model).with_defaults(caller.defaults)
        return _json(await tokens.tokenize(parsed), caller, parsed.ignored)

    @router.post("/detokenize", **detokenize_route())
    async def detokenize(request: Request, caller: Caller) -> Response:
        parsed = parse_detokenize_request(await request.body())
        return _json(await tokens.detokenize(parsed), caller, parsed.ignored)

    @router.post("/v1/chat/completions/render", **render_route(desk.facts.id))
    async def render(request: Request, caller: Caller) -> Response:
        parsed = parse_chat_request(await request.body()).with_defaults(caller.defaults)
        return _json(await tokens.render(parsed), caller, parsed.ignored)

    @router.post(
        "/v1/chat/completions/{id}/cancel",
        **cancel_route("chat.completion", "cancelChatCompletion", "Chat"),
    )
    async def cancel_chat(id: str, caller: Caller) -> Response:
        await desk.stop(id, caller)
        return _json(cancelled_body(id, "chat.completion"), caller)

    @router.post(
        "/v1/completions/{id}/cancel",
        **cancel_route("text_completion", "cancelCompletion", "Completions"),
    )
    async def cancel_completion(id: str, caller: Caller) -> Response:
        await desk.stop(id, caller)
        return _json(cancelled_body(id, "text_completion"), caller)

    return router


def _json(body: bytes, caller: Identity, ignored: Iterable[str] = ()) -> Response:
    headers = {"content-type": "application/json", **caller.figures.headers()}
    if names := ", ".join(ignored):
        headers["x-deeprequest-ignored"] = names
    return Response(body, headers=headers)
