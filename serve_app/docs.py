"""The documentation pages and the OpenAPI document behind them.

Owns /docs, /redoc, /openapi.json and the static files they load, all from this server: a page works
on a machine without a network, and its content policy allows no other origin and no inline script.
Refuses to know what the routes do; what they say of themselves is data of `openai.reference`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, Response

from serve_app.http_errors import error_response
from serve_app.openai.completion_reference import (
    completion_request_body,
    completion_responses,
    completion_schemas,
)
from serve_app.openai.errors import unknown_url
from serve_app.openai.header_reference import REQUEST_HEADERS
from serve_app.openai.reference import (
    chat_request_body,
    chat_responses,
    schemas,
)
from serve_app.openai.token_reference import token_schemas

_WEB = Path(__file__).parent / "web"
_MEDIA_TYPES = {"js": "text/javascript", "css": "text/css"}
ASSETS = (
    "docs-init.js",
    "redoc.standalone.js",
    "swagger-ui-bundle.js",
    "swagger-ui.css",
)
PUBLIC_PATHS = ("/docs", "/redoc", "/openapi.json", "/docs/assets/{name}")
"""Reachable without a key."""

_PAGE_HEADERS = {
    # Both viewers style their parts inline; redoc searches in a worker made from a blob.
    "content-security-policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_ASSET_HEADERS = {"cache-control": "public, max-age=3600", "x-content-type-options": "nosniff"}
_SECURITY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "Your DeepRequest key, as in `Authorization: Bearer YOUR_KEY`.",
}


def chat_route(model: str) -> dict[str, Any]:
    """Keyword arguments for `FastAPI.post` on the chat route; `model` is the id in the examples."""
    return {
        "summary": "Create a chat completion",
        "description": "Continues a conversation, in one piece or as a stream of events. The model "
        "thinks before it answers; both count towards max_tokens.",
        "operation_id": "createChatCompletion",
        "tags": ["Chat"],
        "responses": chat_responses(),
        "openapi_extra": _posted_once(chat_request_body(model)),
    }


def completion_route(model: str) -> dict[str, Any]:
    """As `chat_route`, of the route for raw prompts."""
    return {
        "summary": "Create a completion of a raw prompt",
        "description": "Goes on with text or token ids as they are: no chat template, no thoughts "
        "apart; all that is generated is text. With echo and logprobs it tells how likely each "
        "token of the prompt is.",
        "operation_id": "createCompletion",
        "tags": ["Completions"],
        "responses": completion_responses(),
        "openapi_extra": _posted_once(completion_request_body(model)),
    }


def _posted_once(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "parameters": REQUEST_HEADERS,
        "requestBody": body,
        "security": [{"ApiKey": []}],
    }


def install_docs(app: FastAPI) -> None:
    """Adds the pages, their files and /openapi.json.

    `app` is made with docs_url, redoc_url and openapi_url None. The document is made once, at the
    first request for it: routes added later are not in it.
    """
    app.openapi = _openapi(app)  # type: ignore[method-assign]

    async def openapi_json() -> Response:
        return Response(orjson.dumps(app.openapi()), media_type="application/json")

    async def docs() -> Response:
        return _page("docs.html")

    async def redoc() -> Response:
        return _page("redoc.html")

    handlers: tuple[Callable[..., Any], ...] = (docs, redoc, openapi_json, _asset)
    for path, handler in zip(PUBLIC_PATHS, handlers, strict=True):
        app.add_api_route(path, handler, methods=["GET", "HEAD"], include_in_schema=False)


async def _asset(name: str) -> Response:
    """One of ASSETS; they change with a release only, so a client asks again after an hour."""
    if name not in ASSETS:
        return error_response(unknown_url())
    media_type = _MEDIA_TYPES[name.rpartition(".")[2]]
    return FileResponse(_WEB / name, media_type=media_type, headers=_ASSET_HEADERS)


def _page(name: str) -> Response:
    return FileResponse(_WEB / name, media_type="text/html", headers=_PAGE_HEADERS)


def _openapi(app: FastAPI) -> Callable[[], dict[str, Any]]:
    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    return document


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = document.setdefault("components", {})
    generated = components.get("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        generated.pop(name, None)
    components["schemas"] = {
        **generated,
        **schemas(),
        **completion_schemas(),
        **token_schemas(),
    }
    components.setdefault("securitySchemes", {})["ApiKey"] = _SECURITY_SCHEME
    for operations in document["paths"].values():
        for operation in operations.values():
            # FastAPI announces its own 422 where this service answers 400; ours stays.
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    return document
