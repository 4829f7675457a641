"""One streamed chat completion over HTTP, as cheap as it can be for whoever shares the cores.

Owns the connection, the events and the time of each. Reads no event as JSON but the last with its
token counts: whether an event carries text is seen from its bytes. Works with every server of the
OpenAI chat API. Knows no load and no figures.
"""

import asyncio
import re
import ssl
import time
from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import httptools
import orjson

_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|text)": ?"[^"]')
"""A delta whose text is not empty."""
_KEPT_ERROR_BYTES = 2000


class HttpError(Exception):
    """The server refused or broke off; the message holds status and body."""


class Target(NamedTuple):
    """Where and as whom to ask."""

    base_url: str
    """Ends in /v1, as clients of the API have it; without it, it is added."""
    api_key: str = ""

    def head(self, method: str, path: str, body: bytes) -> bytes:
        """A request up to its body; the connection is for this request alone."""
        url = urlsplit(self.base_url)
        prefix = url.path.rstrip("/")
        if not prefix.endswith("/v1"):
            prefix += "/v1"
        lines = [f"{method} {prefix}{path} HTTP/1.1", f"Host: {url.netloc}", "Connection: close"]
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


class Reply:
    """What came back, and when. Times are perf_counter seconds."""

    def __init__(self) -> None:
        self.sent_at = 0.0
        self.ended_at = 0.0
        self.times = array("d")
        """Of every event with text."""
        self.usage: dict[str, Any] = {}
        self.error = ""

    @property
    def tokens(self) -> int:
        """Output tokens by the server's count, where it tells one; else events with text."""
        return int(self.usage.get("completion_tokens") or len(self.times))

    @property
    def prompt_tokens(self) -> int:
        return int(self.usage.get("prompt_tokens") or 0)


class _Connection(asyncio.Protocol):
    """Sends one request and reads its answer to the end."""

    def __init__(self, request: bytes, streamed: bool) -> None:
        self.reply = Reply()
        self.body = b""
        self.status = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._streamed = streamed
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.reply.sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("the connection was closed before the answer's end")

    # what the parser calls

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if not self._streamed or self.status != 200:
            self.body += data
            return
        *events, self.body = (self.body + data).replace(b"\r\n", b"\n").split(b"\n\n")
        now = time.perf_counter()
        for event in events:
            if _TEXT.search(event):
                self.reply.times.append(now)
            if b'"usage":' in event and b'_tokens"' in event:
                self.reply.usage = _usage(event)
            if b'"error":' in event[:16]:
                self.reply.error = event.decode(errors="replace")

    def on_message_complete(self) -> None:
        if self.status != 200:
            text = self.body[:_KEPT_ERROR_BYTES].decode(errors="replace")
            self._end(f"status {self.status}: {text}")
        else:
            self._end(self.reply.error)

    def _end(self, error: str) -> None:
        if self.over.done():
            return
        self.reply.ended_at = time.perf_counter()
        self.reply.error = error
        self.over.set_result(None)
        if self._transport is not None:
            self._transport.close()


async def stream(target: Target, request: Mapping[str, Any], timeout_s: float) -> Reply:
    """A streamed chat completion; whatever goes wrong is in `error`, nothing is raised."""
    body = orjson.dumps({**request, "stream": True, "stream_options": {"include_usage": True}})
    head = target.head("POST", "/chat/completions", body)
    try:
        connection = await _exchange(target, head, True, timeout_s)
    except (OSError, TimeoutError) as error:
        failed = Reply()
        failed.error = str(error) or type(error).__name__
        return failed
    return connection.reply


async def get(target: Target, path: str, timeout_s: float = 10.0) -> Any:
    """The JSON at a path below /v1.

    Raises:
        HttpError: the server refused, or answered no JSON.
        OSError: it is not there.
    """
    connection = await _exchange(target, target.head("GET", path, b""), False, timeout_s)
    if connection.reply.error:
        raise HttpError(connection.reply.error)
    try:
        return orjson.loads(connection.body)
    except orjson.JSONDecodeError as error:
        raise HttpError(f"{path} is not JSON: {error}") from error


async def _exchange(
    target: Target, request: bytes, streamed: bool, timeout_s: float
) -> _Connection:
    url = urlsplit(target.base_url)
    secure = url.scheme == "https"
    context = ssl.create_default_context() if secure else None
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: _Connection(request, streamed),
        url.hostname or "127.0.0.1",
        url.port or (443 if secure else 80),
        ssl=context,
    )
    try:
        async with asyncio.timeout(timeout_s):
            await connection.over
    except TimeoutError:
        connection.connection_lost(None)
        connection.reply.error = f"no end within {timeout_s:g} s"
    return connection


def _usage(event: bytes) -> dict[str, Any]:
    """The token counts of an event; none where it is no JSON object with some."""
    try:
        told = orjson.loads(event.partition(b"data:")[2]).get("usage")
    except (orjson.JSONDecodeError, AttributeError):
        return {}
    return told if isinstance(told, dict) else {}
