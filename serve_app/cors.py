"""Cors: which web pages of other origins may call this server from a browser.

Owns the answers to preflight requests and the headers that let a page read a response, refusals
included. Only origins that are configured get them. Refuses to know routes; a key in the
Authorization header is all that identifies a caller, so cookies are never allowed.
"""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from serve_app.http_errors import error_response
from serve_app.openai.errors import origin_not_allowed
from serve_app.queue_wishes import CLASS_HEADER

READABLE_HEADERS = (
    CLASS_HEADER,
    "retry-after",
    "retry-after-ms",
    "server-timing",
    "x-request-id",
    "x-should-retry",
    "x-deeprequest-ignored",
    "x-deeprequest-model",
    "x-deeprequest-queue-ms",
    *(
        f"x-ratelimit-{figure}-{unit}"
        for figure in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
)


class Cors(CORSMiddleware):
    """Wraps an ASGI application for pages of `origins`, each as in "https://app.example"."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=READABLE_HEADERS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """As the framework's, with the envelope where it refuses."""
        response = super().preflight_response(request_headers)
        return response if response.status_code == 200 else error_response(origin_not_allowed())
