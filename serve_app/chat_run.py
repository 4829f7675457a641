"""ChatRun: one admitted chat request, from its first delta to its settlement.

Owns the loop over deltas, the server's time limit, keep-alives, what is measured on the way, and
that the ticket is settled once, however the request ends. Knows the OpenAI objects only through
their builders; knows no HTTP framework, no Redis and no Ray.
"""

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Protocol

from cluster.request import FinishReason, RequestOutput, Usage
from serve_app.deltas import ReplicaLostError
from serve_app.generation import Generation
from serve_app.metrics import Metrics
from serve_app.openai import errors, sse
from serve_app.openai.chat import ChatCompletion, ChatStream
from serve_app.openai.errors import ApiError

CLIENT_LEFT = 499
"""Counted, never sent: the client hung up."""


class Settlement(Protocol):
    """What holds the request's reservation."""

    def settle(
        self, *, prompt_tokens: int, output_tokens: int, cached_tokens: int, outcome: str
    ) -> object:
        """Charge what was used and release the slot; returns at once, only the first call counts.

        `outcome` is ok, abort or error.
        """


class ChatRun:
    """Reads a generation to its end, in one piece or as a stream; use one of the two, once."""

    def __init__(
        self,
        generation: Generation,
        ticket: Settlement,
        metrics: Metrics,
        prompt_tokens: int,
        *,
        arrived: float,
        timeout_s: float,
        keep_alive_s: float,
    ) -> None:
        """`arrived` is a time of time.monotonic()."""
        self._generation = generation
        self._ticket = ticket
        self._metrics = metrics
        self._arrived = arrived
        self._deadline = arrived + timeout_s
        self._keep_alive_s = keep_alive_s
        self._usage = Usage(prompt_tokens, 0, 0, 0)
        self._last_delta_at: float | None = None
        self._outcome = "abort"
        self._closed = False

    async def answer(self, completion: ChatCompletion) -> bytes:
        """The whole response body.

        Raises:
            ApiError: the engine failed the request, its replica was lost, or time ran out.
        """
        try:
            async with contextlib.aclosing(self._deltas()) as deltas:
                async for batch in deltas:
                    for output in batch:
                        completion.push(output)
                        last = output
        except ApiError as error:
            self._metrics.answered(error.status)
            raise
        self._metrics.answered(200)
        return completion.body(last)

    async def events(self, stream: ChatStream) -> AsyncGenerator[bytes, None]:
        """The response as server-sent events; a failure is the last event, without [DONE].

        One event a delta; those that arrived together are sent together.
        """
        yield stream.first()
        try:
            async with contextlib.aclosing(self._deltas()) as deltas:
                async for batch in deltas:
                    if not batch:
                        yield sse.KEEP_ALIVE
                    elif events := b"".join([stream.push(output) for output in batch]):
                        yield events
        except ApiError as error:
            self._metrics.answered(error.status)
            yield sse.error_event(error)
        else:
            self._metrics.answered(200)

    async def _deltas(self) -> AsyncGenerator[list[RequestOutput], None]:
        """Batches of deltas up to the last; an empty one after a silence of keep_alive_s."""
        try:
            async with contextlib.aclosing(self._generation.outputs(self._poll_s)) as batches:
                async for batch in batches:
                    now = time.monotonic()
                    last = batch[-1] if batch else None
                    if now >= self._deadline and (last is None or last.finish_reason is None):
                        raise errors.generation_timeout()
                    if last is not None:
                        self._measure(batch, now)
                        if last.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
                            batch.pop()
                            if batch:
                                yield batch
                            raise _failure(last)
                    yield batch
            self._outcome = "ok"
        except ApiError:
            self._outcome = "error"
            raise
        except ReplicaLostError:
            self._outcome = "error"
            raise errors.replica_lost() from None
        finally:
            self.close()

    def close(self) -> None:
        """Give the ticket back with what was used; only the first call counts."""
        if self._closed:
            return
        self._closed = True
        if self._outcome == "abort":
            self._metrics.answered(CLIENT_LEFT)
        self._metrics.request_latency.observe(time.monotonic() - self._arrived)
        self._metrics.used(self._usage)
        self._ticket.settle(
            prompt_tokens=self._usage.prompt_tokens,
            cached_tokens=self._usage.cached_tokens,
            output_tokens=self._usage.completion_tokens,
            outcome=self._outcome,
        )

    def _poll_s(self) -> float:
        """How long a silence may last: up to the next keep-alive, or the end of the time."""
        return max(0.0, min(self._keep_alive_s, self._deadline - time.monotonic()))

    def _measure(self, batch: list[RequestOutput], now: float) -> None:
        if self._last_delta_at is None:
            self._metrics.time_to_first_token.observe(now - self._arrived)
        else:
            self._metrics.inter_token_latency.observe(now - self._last_delta_at)
        self._last_delta_at = now
        for output in batch:
            if output.usage is not None:
                self._usage = output.usage
            else:
                self._usage.completion_tokens += len(output.token_ids)


def _failure(output: RequestOutput) -> ApiError:
    if output.error == "engine_dead" or output.finish_reason is FinishReason.ABORT:
        return errors.replica_lost()
    return errors.engine_error(output.error)
