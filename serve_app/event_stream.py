"""EventStream: the response of a streamed request.

Owns one promise: however the response ends, even before its first byte or because its reader takes
nothing any more, the run behind it is closed. A body iterator that never started would not do that
by itself.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.openai import sse
from serve_app.stall_guard import stall_guard


class StreamedReply(Protocol):
    """A request that wants its answer as events."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def events(self) -> AsyncGenerator[bytes, None]: ...

    def close(self) -> None:
        """Ends what is behind the events, whatever became of them."""


class EventStream(StreamingResponse):
    """Server-sent events of one reply."""

    def __init__(self, reply: StreamedReply, stall_timeout_s: float) -> None:
        headers: Mapping[str, str] = {**sse.HEADERS, **reply.headers}
        self._reply = reply
        self._events = reply.events()
        self._stall_timeout_s = stall_timeout_s
        super().__init__(self._events, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with stall_guard(send, self._stall_timeout_s) as guarded:
                await super().__call__(scope, receive, guarded)
        finally:
            await self._events.aclose()
            self._reply.close()
