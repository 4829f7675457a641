"""DeltaStream: the deltas of a request's choices on their way from a connection to its reader.

Owns what has arrived and was not read yet, and how long its absence may last. Knows no sockets.
"""

import asyncio
import itertools
import math
from collections.abc import Callable, Iterable

from cluster.request import RequestOutput

MAX_PENDING = 256
"""Deltas that wait for their reader before they are made one."""


class ReplicaLostError(Exception):
    """The replica that fed this stream is gone."""


class DeltaStream:
    """The deltas of a request's choices, as they arrive; read by one task.

    A reader that falls behind by MAX_PENDING deltas gets them as one of each choice.
    """

    __slots__ = ("_error", "_pending", "_silence", "_waiter", "peer", "request_ids")

    def __init__(self, request_ids: Iterable[str]) -> None:
        """`request_ids`: one per choice."""
        self.request_ids = tuple(request_ids)
        self.peer: object | None = None
        self._pending: list[RequestOutput] = []
        self._waiter: asyncio.Future[None] | None = None
        self._silence = Silence(self._wake)
        self._error: Exception | None = None

    def push(self, output: RequestOutput, peer: object) -> None:
        """A delta arrived; one that comes after the stream failed is dropped."""
        if self._error is not None:
            return
        self.peer = peer
        self._pending.append(output)
        if self._waiter is not None:
            self._wake()
        elif len(self._pending) > MAX_PENDING:
            self._pending = merged(self._pending)

    def fail(self, error: Exception) -> None:
        """Make `take` raise once everything that arrived before was taken."""
        self._error = self._error or error
        self._wake()

    async def take(self, timeout_s: float | None = None) -> list[RequestOutput]:
        """All deltas that arrived since the last call; none if `timeout_s` passed without any.

        Raises:
            Exception: what `fail` was given, e.g. ReplicaLostError.
        """
        if not self._pending and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            self._silence.expect(timeout_s)
            try:
                await self._waiter
            finally:
                self._waiter = None
        taken, self._pending = self._pending, []
        if not taken and self._error is not None:
            raise self._error
        return taken

    def close(self) -> None:
        """No more is read; a timer would keep the stream alive."""
        self._silence.end()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Silence:
    """Calls back when nothing is waited for longer than allowed.

    A timer that is set and cleared for every delta would cost more than the delta. This one is left
    running and looks, when it fires, whether the wait of then is still the wait of now.
    """

    __slots__ = ("_deadline", "_fires_at", "_on_silence", "_timer")

    def __init__(self, on_silence: Callable[[], None]) -> None:
        self._on_silence = on_silence
        self._deadline = math.inf
        self._fires_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, timeout_s: float | None) -> None:
        """A wait begins; it may last `timeout_s`."""
        if timeout_s is None:
            self._deadline = math.inf
            return
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + timeout_s
        if self._deadline < self._fires_at:
            self.end()
            self._fires_at = self._deadline
            self._timer = loop.call_at(self._deadline, self._look)

    def end(self) -> None:
        """No wait will follow, or one that ends sooner."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._fires_at = None, math.inf

    def _look(self) -> None:
        self._timer, self._fires_at = None, math.inf
        loop = asyncio.get_running_loop()
        if loop.time() >= self._deadline:
            self._on_silence()
        elif self._deadline < math.inf:
            self._fires_at = self._deadline
            self._timer = loop.call_at(self._deadline, self._look)


def merged(batch: list[RequestOutput]) -> list[RequestOutput]:
    """The deltas of each choice as one, so that a slow reader gets fewer, longer events."""
    choices: dict[str, list[RequestOutput]] = {}
    for output in batch:
        choices.setdefault(output.request_id, []).append(output)
    return [_joined(outputs) for outputs in choices.values()]


def _joined(batch: list[RequestOutput]) -> RequestOutput:
    last = batch[-1]
    told = [output.logprobs for output in batch if output.logprobs is not None]
    judged = [output.prompt_logprobs for output in batch if output.prompt_logprobs is not None]
    return RequestOutput(
        last.request_id,
        reasoning="".join([output.reasoning for output in batch]),
        content="".join([output.content for output in batch]),
        reasoning_ended=any(output.reasoning_ended for output in batch),
        token_ids=list(itertools.chain.from_iterable(output.token_ids for output in batch)),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        usage=last.usage,
        error=last.error,
        logprobs=list(itertools.chain.from_iterable(told)) if told else None,
        reasoning_stop=last.reasoning_stop,
        prompt_logprobs=list(itertools.chain.from_iterable(judged)) if judged else None,
    )
