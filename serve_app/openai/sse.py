"""Server-sent events: how a stream is cut into events.

Owns the framing bytes. Refuses to know what an event says. `[DONE]` means success: a stream that
fails ends with one error event and without it.
"""

from typing import Any

import orjson

from serve_app.openai.errors import ApiError, envelope

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: every client skips it, every proxy on the way sees traffic."""


def queued_comment(position: int, eta_s: float | None) -> bytes:
    """A keep-alive that tells a waiter's place (1 is next) and its predicted wait."""
    eta = f" eta={eta_s:.0f}s" if eta_s is not None else ""
    return f": queued position={position}{eta}\n\n".encode()


_LINE_ENDS = [(end.encode(), b"\\u%04x" % ord(end)) for end in "\x85\u2028\u2029"]
"""JSON has them raw; a reader of lines who knows Unicode (httpx does) would cut an event there."""

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def line(value: Any) -> bytes:
    """JSON that is one line to every reader of lines."""
    text = orjson.dumps(value)
    if not text.isascii():
        for end, escaped in _LINE_ENDS:
            text = text.replace(end, escaped)
    return text


def event(payload: bytes) -> bytes:
    """One event; `payload` is JSON on a single line."""
    return b"data: %b\n\n" % payload


def error_event(error: ApiError) -> bytes:
    """The last event of a stream that failed after its headers were sent."""
    return event(envelope(error))
