"""Answering: from the body of a request for text to its HTTP response.

Owns what all such routes share: every end is counted once, an answer comes whole or as events, and
a request with an Idempotency-Key is run once. Refuses to know what is asked.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from serve_app import once
from serve_app.answer_run import CLIENT_LEFT
from serve_app.desk import Caller, Desk, Waiting
from serve_app.event_stream import EventStream, StreamedReply
from serve_app.metrics import Metrics
from serve_app.once import Once
from serve_app.openai.errors import ApiError
from serve_app.queue_wishes import read_wishes
from serve_app.queued_stream import begun
from serve_app.tenancy.admission import Identity


class Reply(StreamedReply, Protocol):
    """An admitted request that can be answered in one piece or as events."""

    async def body(self) -> bytes:
        """The whole answer. Raises ApiError."""

    def server_timing(self) -> str:
        """The phases that are over, for the header of that name."""


class Asked(NamedTuple):
    """A request that was understood."""

    begin: Callable[[Caller], Awaitable[Reply]]
    """Admits and starts it. Raises ApiError."""
    stream: bool
    ignored: tuple[str, ...]
    """Names for the header x-deeprequest-ignored."""

    def headers(self) -> dict[str, str]:
        """What can be told of it before it is admitted."""
        return {"x-deeprequest-ignored": ", ".join(self.ignored)} if self.ignored else {}


class Answering:
    """One per ingress; all routes for text share it."""

    def __init__(self, desk: Desk, once: Once) -> None:
        self._desk, self._once = desk, once

    async def identify(self, request: Request) -> Identity:
        """Whose key came with a request; one that came with none is counted. Raises ApiError."""
        with _counted(self._desk.metrics):
            return await self._desk.identify(request.headers.get("authorization"), "inference")

    async def respond(
        self, request: Request, identity: Identity, understand: Callable[[bytes], Asked]
    ) -> Response:
        """The response to a request whose body `understand` parses.

        Raises:
            ApiError: the request is wrong, refused or failed.
        """
        with _counted(self._desk.metrics):
            wishes = read_wishes(request.headers)
            body = await request.body()
        caller = Caller.now(identity, wishes)

        async def answer() -> Response:
            with _counted(self._desk.metrics):
                asked = understand(body)
            return await (self._stream if asked.stream else self._whole)(asked, caller)

        name = request.headers.get(once.HEADER)
        if name is None:
            return await answer()
        content = request.url.path.encode() + b"\0" + body
        return await self._once.respond(identity, name, content, answer)

    async def _whole(self, asked: Asked, caller: Caller) -> Response:
        reply = await self._begin(asked, caller)
        body = await reply.body()
        timing = {"content-type": "application/json", "server-timing": reply.server_timing()}
        return Response(body, headers={**reply.headers, **timing})

    async def _stream(self, asked: Asked, caller: Caller) -> Response:
        def early(waiting: Waiting) -> Mapping[str, str]:
            place = waiting.place
            told = self._desk.headers(place.figures, place.service_class)
            return {**told, **asked.headers()}

        http = self._desk.http
        reply = await begun(
            lambda on_queued: self._begin(asked, caller._replace(on_queued=on_queued)),
            self._desk.place,
            early,
            http.keep_alive_s,
        )
        return EventStream(reply, http.stall_timeout_s)

    async def _begin(self, asked: Asked, caller: Caller) -> Reply:
        with _counted(self._desk.metrics):
            return await asked.begin(caller)


@contextlib.contextmanager
def _counted(metrics: Metrics) -> Iterator[None]:
    """Counts a request for text that ends in here, before it is a run: a run counts itself."""
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
