"""HttpLimits: what every HTTP request must keep to before any route sees it.

Owns the bounds on headers, body size, body encoding and the time a body may take, the request id,
and the last word on unexpected exceptions. A pure ASGI wrapper: works under any ASGI server and
under Ray Serve, and passes responses through as they come. Refuses to know routes, keys and JSON.

    request  --> headers bounded? --> encoding, type, length? --> route reads: counted, timed
    response <-- x-request-id  <----------------- or the envelope of what went wrong

Ray Serve has a request id of its own: the client's x-request-id, whatever it is, which it adds to
responses after the application. `serve_middlewares` makes that one sane before Serve sees it.
"""

import asyncio
import contextlib
import re
import traceback
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.openai import errors
from serve_app.openai.errors import ApiError, envelope

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 4 * 2**20
MAX_HEADER_BYTES = 64 * 2**10
BODY_DEADLINE_S = 30.0
LINGER_S = 2.0
"""How long the rest of a refused body is read and dropped, so that the client sees the refusal
instead of a reset connection."""

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class BrokenResponseError(Exception):
    """A response broke off in the middle; the server must close the connection."""


class HttpLimits:
    """Wraps an ASGI application. The request id is put into the scope's state, `request_id`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_header_bytes: int = MAX_HEADER_BYTES,
        body_deadline_s: float = BODY_DEADLINE_S,
        server_echoes_request_id: bool = False,
    ) -> None:
        """`server_echoes_request_id`: the server adds the request's x-request-id to responses.

        It is then not added a second time. Wrap such a server in SaneRequestId.
        """
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_header_bytes = max_header_bytes
        self._body_deadline_s = body_deadline_s
        self._adds_request_id = not server_echoes_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id"))
        scope = {**scope, "state": {**scope.get("state", {}), "request_id": request_id}}
        deadline = asyncio.get_running_loop().time() + self._body_deadline_s
        body = _Body(receive, self._max_body_bytes, deadline)
        response = _Response(send, request_id if self._adds_request_id else None)
        body.refusal = self._refusal(scope, headers)
        if body.refusal is None:
            await self._run(scope, body, response)
        if body.refusal is not None and not response.started:
            await response.refuse(body.refusal, body)

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        """What can be said without reading the body."""
        url_bytes = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
        header_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if url_bytes + header_bytes > self._max_header_bytes:
            return errors.headers_too_large(self._max_header_bytes)
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            return errors.unsupported_content_encoding()
        length = headers.get("content-length", "0").strip()
        if length.isascii() and length.isdigit() and _exceeds(length, self._max_body_bytes):
            return errors.body_too_large(self._max_body_bytes)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] in _WITH_BODY and media_type not in ("", "application/json"):
            return errors.unsupported_media_type()
        return None

    async def _run(self, scope: Scope, body: "_Body", response: "_Response") -> None:
        async def send(message: Message) -> None:
            # A refused body has its own answer, whatever the application makes of it.
            if body.refusal is None or response.started:
                await response.send(message)

        request_id = scope["state"]["request_id"]
        try:
            await self._app(scope, body.receive, send)
        except ClientDisconnect:
            return
        except ApiError as error:
            body.refusal = body.refusal or error
        except Exception as error:  # the edge of the process: nothing passes but an envelope
            if body.refusal is not None or body.client_left:
                return
            _log(error, request_id)
            if response.started and not response.complete:
                raise BrokenResponseError(request_id) from None
            body.refusal = errors.internal_error(request_id)


class SaneRequestId:
    """Gives every request exactly one x-request-id: the client's if it is sane, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = MutableHeaders(scope=scope)
            headers["x-request-id"] = _request_id(headers.get("x-request-id"))
        await self._app(scope, receive, send)


def serve_middlewares() -> list[Middleware]:
    """What Ray Serve puts around its own middleware.

    Named by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.http_limits.serve_middlewares.
    """
    return [Middleware(SaneRequestId)]


class _Body:
    """The request's body on its way in."""

    def __init__(self, receive: Receive, max_bytes: int, deadline: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._deadline = deadline
        self._bytes = 0
        self.complete = False
        self.client_left = False
        """Whether the client hung up while the body was read."""
        self.refusal: ApiError | None = None
        """Why this request gets an error in place of the application's answer."""

    async def receive(self) -> Message:
        """The next message of the server.

        Raises:
            ApiError: the body grew too large, or took too long; `refusal` says the same.
        """
        if self.complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self.refusal = errors.request_timeout()
            raise self.refusal from None
        self._count(message)
        if self._bytes > self._max_bytes:
            self.refusal = errors.body_too_large(self._max_bytes)
            raise self.refusal
        return message

    async def drop(self) -> None:
        """Reads what is left, for a while, and forgets it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self.complete and not self.client_left:
                    self._count(await self._receive())

    def _count(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self.client_left = True
            return
        self._bytes += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)


class _Response:
    """The response on its way out."""

    def __init__(self, send: Send, request_id: str | None) -> None:
        self._send = send
        self._request_id = request_id
        self.started = False
        self.complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if self._request_id is not None:
                MutableHeaders(scope=message)["x-request-id"] = self._request_id
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, error: ApiError, body: _Body) -> None:
        content = envelope(error)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            **error.headers,
        }
        raw = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": content, "more_body": True})
        await body.drop()
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def _exceeds(digits: str, limit: int) -> bool:
    """Compares without turning a million digits into a number."""
    digits = digits.lstrip("0")
    return len(digits) > len(str(limit)) or int(digits or "0") > limit


def _request_id(offered: str | None) -> str:
    if offered is not None and _SANE_ID.fullmatch(offered):
        return offered
    return f"req_{uuid.uuid4().hex}"


def _log(error: Exception, request_id: str) -> None:
    """Where it happened and of what kind; the exception's own text may quote the request."""
    frames = traceback.extract_tb(error.__traceback__)
    log.error(
        "unexpected exception",
        request_id=request_id,
        kind=type(error).__name__,
        frames=[f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames[-12:]],
    )
