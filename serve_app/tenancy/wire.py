"""Wire: one connection to Redis that all calls of an event loop share.

Owns that what is asked in one turn of the loop goes out in one write, that answers find their calls
(Redis answers in order), and noticing that Redis went silent. Opening a connection (sockets, TLS,
accounts, sentinels) and parsing are the client library's. Refuses to know what is asked, and
whether it is asked again.

    call ─► outbox ─ writer ─► Redis ─ reader ─► the oldest of `pending`

Silence is measured over the whole connection: calls that wait behind many others are not in an
outage while answers come. When it lasts too long, or the connection breaks, everything pending
fails, and the next call opens another one.
"""

import asyncio
import contextlib
import contextvars
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import hiredis
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError

SECOND_LOOK_S = 0.02
"""A loop that was held up sees timers before answers that have long been there: look twice."""

Args = tuple[str | int | bytes, ...]


class Connection(Protocol):
    """The client library's, as far as it is used here."""

    async def connect(self) -> None:
        """Opens it, with its TLS and its account."""

    async def disconnect(self, nowait: bool = False) -> None:
        """Closes it."""

    async def send_packed_command(self, command: bytes, check_health: bool = True) -> None:
        """Writes."""

    async def read_response(self, *, disconnect_on_error: bool = True) -> Any:
        """The next answer; raises it when it is an error."""


class Wire:
    """Calls to one Redis, answered in order. Use it from one event loop."""

    def __init__(
        self,
        connection: Callable[[], Connection],
        forms: Mapping[Any, Callable[[Any], Any]],
        silence_s: float,
    ) -> None:
        """`connection` makes one that is not open yet, without timeouts of its own for reading;
        `forms` are what the client library makes of the answers to a command; `silence_s` is the
        longest time without an answer while one is awaited."""
        self._connection, self._forms, self._silence_s = connection, forms, silence_s
        self._link: _Link | None = None
        self._closed = False

    async def call(self, args: Args) -> Any:
        """The answer to a command.

        Raises RedisError: what Redis said, or (ConnectionError, TimeoutError) nothing was heard.
        """
        if self._closed:
            raise ConnectionError("closed")
        if self._link is None or self._link.broken:
            self._link = _Link(self._connection(), self._silence_s)
        answer = await self._link.ask(hiredis.pack_command(cast(Any, args)))
        form = self._forms.get(args[0])
        return answer if form is None else form(answer)

    async def aclose(self) -> None:
        """Fails what is pending and whatever comes, and closes the connection."""
        self._closed = True
        if self._link is not None:
            await self._link.aclose()


class _Link:
    """One connection, from its opening to its end."""

    def __init__(self, connection: Connection, silence_s: float) -> None:
        self._connection, self._silence_s = connection, silence_s
        self._loop = asyncio.get_running_loop()
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._outbox: list[bytes] = []
        self._asked = asyncio.Event()
        self._quiet_since = self._doubted = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.broken = False
        self._task = asyncio.create_task(self._run(), context=contextvars.Context())

    def ask(self, packed: bytes) -> asyncio.Future[Any]:
        """The answer to a packed command, to be."""
        if not self._pending:
            self._quiet_since = time.monotonic()
            if self._timer is None:
                self._timer = self._loop.call_later(self._silence_s, self._look)
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._pending.append(answer)
        self._outbox.append(packed)
        self._asked.set()
        return answer

    async def aclose(self) -> None:
        self._end(ConnectionError("closed"))
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        reason: BaseException = ConnectionError("the connection ended")
        try:
            await self._connection.connect()
            self._quiet_since = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write())
                group.create_task(self._read())
        except* (RedisError, OSError) as errors:
            reason = errors.exceptions[0]
        finally:
            self._fail(reason)
            with contextlib.suppress(RedisError, OSError):
                await self._connection.disconnect(nowait=True)

    async def _write(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            packed = b"".join(self._outbox)
            self._outbox.clear()
            await self._connection.send_packed_command(packed, check_health=False)

    async def _read(self) -> None:
        while True:
            try:
                value = await self._connection.read_response(disconnect_on_error=False)
            except ResponseError as error:
                self._hear(None, error)
            else:
                self._hear(value, None)

    def _hear(self, value: Any, error: ResponseError | None) -> None:
        self._quiet_since = time.monotonic()
        answer = self._pending.popleft()
        if answer.done():
            return
        if error is None:
            answer.set_result(value)
        else:
            answer.set_exception(error)

    def _look(self) -> None:
        """Whether Redis has been silent too long."""
        self._timer = None
        if not self._pending:
            return
        left_s = self._quiet_since + self._silence_s - time.monotonic()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        elif self._doubted != self._quiet_since:
            self._doubted = self._quiet_since
            self._timer = self._loop.call_later(SECOND_LOOK_S, self._look)
        else:
            self._end(TimeoutError(f"no answer within {self._silence_s} s"))

    def _end(self, reason: RedisError) -> None:
        self._fail(reason)
        self._task.cancel()

    def _fail(self, reason: BaseException) -> None:
        self.broken = True
        if self._timer is not None:
            self._timer.cancel()
        for answer in self._pending:
            if not answer.done():
                answer.set_exception(reason)
        self._pending.clear()
