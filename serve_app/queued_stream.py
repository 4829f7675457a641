"""A stream whose request waits in the queue: when its headers go out, and what is said meanwhile.

    admitted or refused soon   the status tells, as for any request
    still waiting after that   200 at once, then comments with place and predicted wait; a refusal
                               that comes later is the stream's error event

Owns that choice and the comments. All that can be wrong with a request is found before it queues,
so nothing but the wait itself can still go wrong behind early headers.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from serve_app.desk import Waiting
from serve_app.event_stream import StreamedReply
from serve_app.openai import sse
from serve_app.openai.errors import ApiError
from serve_app.tenancy.admit_reply import QueuePlace

Begin = Callable[[Callable[[Waiting], None]], Awaitable[StreamedReply]]
"""Begins a request, telling when it has to wait. Raises ApiError."""
AskPlace = Callable[[str], Awaitable[QueuePlace | None]]


async def begun(
    begin: Begin,
    ask_place: AskPlace,
    headers: Callable[[Waiting], Mapping[str, str]],
    keep_alive_s: float,
) -> StreamedReply:
    """The reply to stream: the request's own, or one that waits for it.

    Args:
        headers: what can be told early of a waiting request.
        keep_alive_s: how long a waiting request may leave its client without a byte.

    Raises:
        ApiError: the request is refused, while its status can still tell.
    """
    waiting: asyncio.Future[Waiting] = asyncio.get_running_loop().create_future()

    def on_queued(found: Waiting) -> None:
        if not waiting.done():  # a request that Redis forgot queues again
            waiting.set_result(found)

    task = asyncio.ensure_future(begin(on_queued))
    queued = QueuedReply(task, ask_place, keep_alive_s)
    try:
        either: tuple[asyncio.Future[Any], ...] = (task, waiting)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await asyncio.wait({task}, timeout=keep_alive_s)
    except BaseException:
        queued.close()
        raise
    if task.done():
        return task.result()
    found = waiting.result()
    queued.rid, queued.headers = found.rid, headers(found)
    return queued


class QueuedReply:
    """Comments while a request waits, then its own events."""

    def __init__(
        self, task: "asyncio.Future[StreamedReply]", ask_place: AskPlace, keep_alive_s: float
    ) -> None:
        self._task, self._ask_place, self._keep_alive_s = task, ask_place, keep_alive_s
        self.rid = ""
        self.headers: Mapping[str, str] = {}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """As of any reply; a refusal is the last event."""
        while not self._task.done():
            place = await self._ask_place(self.rid)
            yield sse.queued_comment(place.position, place.eta_s) if place else sse.KEEP_ALIVE
            await asyncio.wait({self._task}, timeout=self._keep_alive_s)
        try:
            reply = self._task.result()
        except ApiError as error:
            yield sse.error_event(error)
            return
        events = reply.events()
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    def close(self) -> None:
        """Leaves the queue, or ends the run that came of it."""
        self._task.cancel()
        self._task.add_done_callback(_close)


def _close(task: "asyncio.Future[StreamedReply]") -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
