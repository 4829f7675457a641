"""EventStream: the response of a streamed chat request.

Owns one promise: however the response ends, even before its first byte, the run behind it is
closed. A body iterator that never started would not do that by itself.
"""

from collections.abc import Mapping

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.chat_service import ChatReply
from serve_app.openai import sse


class EventStream(StreamingResponse):
    """Server-sent events of one reply."""

    def __init__(self, reply: ChatReply) -> None:
        headers: Mapping[str, str] = {**sse.HEADERS, **reply.headers}
        self._reply = reply
        self._events = reply.events()
        super().__init__(self._events, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
            self._reply.run.close()
