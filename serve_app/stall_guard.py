"""A send that gives up: no client is waited for that takes nothing any more.

Owns how long one message may take to be taken, once the connection is full. What such a client does
not read would hold its place in the model's batch for ever.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.types import Message, Send

from serve_app.deltas import Silence


@contextlib.asynccontextmanager
async def stall_guard(send: Send, timeout_s: float) -> AsyncIterator[Send]:
    """`send`, whose messages may each take `timeout_s`.

    Raises:
        ClientDisconnect: out of the block, when one took longer; the block was cancelled.
    """
    guard = _Guard(send, timeout_s)
    try:
        yield guard.send
    except asyncio.CancelledError:
        if not guard.gave_up:
            raise
        guard.task.uncancel()
        raise ClientDisconnect from None
    finally:
        guard.silence.end()


class _Guard:
    """Cancels the task that it was made in."""

    def __init__(self, send: Send, timeout_s: float) -> None:
        self._send, self._timeout_s = send, timeout_s
        task = asyncio.current_task()
        assert task is not None, "an ASGI application runs in a task"
        self.task = task
        self.silence = Silence(self._give_up)
        self.gave_up = False

    async def send(self, message: Message) -> None:
        self.silence.expect(self._timeout_s)
        await self._send(message)
        self.silence.expect(None)

    def _give_up(self) -> None:
        self.gave_up = True
        self.task.cancel()
