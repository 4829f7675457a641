"""Once: requests that come with an Idempotency-Key are run once, however often they are sent.

Owns the header, the run that outlives its connection, and what of its response is kept. The first
sending runs the request in a task of its own: whoever hangs up may ask again and finds the reply.
Refuses to know what a request says and where replies are kept.

    first sending     the response, as it is made
    while it runs     409 and how long to wait
    afterwards        the kept response, idempotent-replayed: true, nothing charged
    with other words  422

Only a success is kept. A request that was refused or failed may be run again.
"""

import asyncio
import contextvars
import re
from collections.abc import Awaitable, Callable

import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve_app.metrics import Metrics
from serve_app.openai import errors, sse
from serve_app.openai.errors import ApiError
from serve_app.refusal_errors import api_error
from serve_app.stall_guard import stall_guard
from serve_app.tenancy.admission import Identity
from serve_app.tenancy.refusals import Refusal, StoreUnavailable
from serve_app.tenancy.replies import Claim, Replies, StoredReply

HEADER = "idempotency-key"
REPLAYED = {"idempotent-replayed": "true"}
_NAME = re.compile(r"[!-~]{1,255}")
_KEPT_HEADERS = (
    "content-type",
    "cache-control",
    "x-accel-buffering",
    "x-deeprequest-ignored",
    "x-deeprequest-model",
)
_MORE_ATTEMPTS = 5

log = structlog.get_logger(__name__)


class Once:
    """One per ingress; all routes share it."""

    def __init__(self, replies: Replies, metrics: Metrics, stall_timeout_s: float) -> None:
        self._replies, self._metrics = replies, metrics
        self._stall_timeout_s = stall_timeout_s
        self._runs: set[asyncio.Task[None]] = set()

    async def respond(
        self,
        identity: Identity,
        name: str,
        content: bytes,
        answer: Callable[[], Awaitable[Response]],
    ) -> Response:
        """What `answer` gives, run at most once for this name of this API key.

        Args:
            name: the header's value.
            content: path and body; another content under the same name is refused.
            answer: counts itself, however it ends.

        Raises:
            ApiError: the name is not valid, in use or of another content; or what `answer` raises.
        """
        try:
            claim = await self._claim(identity.key_id, name, content)
        except ApiError as error:
            self._metrics.answered(error.status)
            raise
        if isinstance(claim, StoredReply):
            self._metrics.answered(claim.status)
            headers = {**claim.headers, **identity.figures.headers(), **REPLAYED}
            return Response(claim.body, claim.status, headers=headers)
        recording = _Recording()
        # Serve cancels what inherits the request's context when the client leaves.
        run = asyncio.create_task(
            self._run(claim, answer, recording), context=contextvars.Context()
        )
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)
        await recording.head()
        return _Followed(recording, self._stall_timeout_s)

    async def _claim(self, key_id: str, name: str, content: bytes) -> Claim | StoredReply:
        if _NAME.fullmatch(name) is None:
            raise errors.invalid_idempotency_key()
        try:
            return await self._replies.claim(key_id, name, content)
        except Refusal as refusal:
            raise api_error(refusal) from None

    async def _run(
        self, claim: Claim, answer: Callable[[], Awaitable[Response]], recording: "_Recording"
    ) -> None:
        try:
            response = await answer()
            await response(_SCOPE, _never, recording.send)
        except Exception as error:
            recording.fail(error)
        reply = recording.reply()
        kept = await self._told(claim, reply)
        recording.end()  # whoever has read the whole response may ask for it again at once
        for attempt in range(_MORE_ATTEMPTS):
            if kept:
                return
            await asyncio.sleep(2.0**attempt)
            kept = await self._told(claim, reply)
        log.error("idempotent_reply_lost")

    async def _told(self, claim: Claim, reply: StoredReply | None) -> bool:
        """Whether Redis has heard what became of a claim."""
        try:
            if reply is None:
                await self._replies.drop(claim)
            else:
                await self._replies.keep(claim, reply)
        except StoreUnavailable:
            return False
        return True


class _Recording:
    """A response as ASGI messages, written by one task and read by another, which gets the last of
    them only at `end`."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._error: Exception | None = None
        self._ended = False
        self._news = asyncio.Event()

    async def send(self, message: Message) -> None:
        """The `send` of an ASGI application."""
        self._messages.append(message)
        self._news.set()

    def fail(self, error: Exception) -> None:
        """The application raised."""
        self._error = error

    def end(self) -> None:
        """Nothing follows."""
        self._ended = True
        self._news.set()

    async def head(self) -> None:
        """Waits for the first message. Raises what the application raised before it."""
        await self._reach(1)

    async def replay(self, send: Send) -> None:
        """Sends all messages, waiting for those that are not there yet.

        Raises:
            Exception: what the application raised.
        """
        place = 0
        while await self._reach(place + 1):
            await send(self._messages[place])
            place += 1

    def reply(self) -> StoredReply | None:
        """What is to be kept; None unless the response is a success from end to end."""
        if self._error is not None or not self._messages or self._messages[0]["status"] != 200:
            return None
        raw = {name.decode("latin-1"): text for name, text in self._messages[0]["headers"]}
        headers = {name: raw[name].decode("latin-1") for name in _KEPT_HEADERS if name in raw}
        chunks = [message.get("body", b"") for message in self._messages[1:]]
        body = b"".join(chunk for chunk in chunks if not chunk.startswith(b":")).decode()
        streamed = headers["content-type"].startswith("text/event-stream")
        if streamed and not body.endswith(sse.DONE.decode()):
            return None
        return StoredReply(200, headers, body)

    def _is_last(self, count: int) -> bool:
        message = self._messages[count - 1]
        return message["type"] == "http.response.body" and not message.get("more_body", False)

    async def _reach(self, count: int) -> bool:
        """Whether there are `count` messages, waiting until that is known."""
        while not self._ended and (len(self._messages) < count or self._is_last(count)):
            self._news.clear()
            await self._news.wait()
        if len(self._messages) >= count:
            return True
        if self._error is not None:
            raise self._error
        return False


class _Followed(Response):
    """A recording as a response; its reader may leave, the recording goes on."""

    def __init__(self, recording: _Recording, stall_timeout_s: float) -> None:
        super().__init__()
        self._recording, self._stall_timeout_s = recording, stall_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with stall_guard(send, self._stall_timeout_s) as guarded:
            await self._recording.replay(guarded)


_SCOPE: Scope = {
    "type": "http",
    "method": "POST",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
}


async def _never() -> Message:
    await asyncio.Future()
    raise AssertionError("unreachable")
