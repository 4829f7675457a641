"""AnswerRun: one admitted request, from its first delta to its settlement.

Owns the loop over deltas, the server's time limit, keep-alives, what is measured on the way, and
that the ticket is settled once, however the request ends: one choice that fails ends all of it.
Knows the OpenAI objects only as builders; knows no HTTP framework, no Redis and no Ray.
"""

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import NamedTuple, Protocol

from cluster.request import FinishReason, RequestOutput, Usage
from serve_app.choices import ChoiceOutput, Tally
from serve_app.deltas import ReplicaLostError
from serve_app.generation import Generation
from serve_app.metrics import Metrics
from serve_app.openai import errors, sse
from serve_app.openai.errors import ApiError
from serve_app.tenancy.session import StopReason

CLIENT_LEFT = 499
"""Counted, never sent: the client hung up."""


class Settlement(Protocol):
    """What holds the request's reservation."""

    @property
    def queued_s(self) -> float:
        """How long the request waited for it."""

    def settle(
        self,
        *,
        prompt_tokens: int,
        output_tokens: int,
        cached_tokens: int,
        reasoning_tokens: int,
        outcome: str,
    ) -> object:
        """Charge what was used and release the slot; returns at once, only the first call counts.

        `outcome` is ok, abort or error.
        """


class Whole(Protocol):
    """Builds a response that is sent in one piece."""

    def push(self, index: int, output: RequestOutput) -> None:
        """Takes the next delta of a choice."""

    def body(self, usage: Usage) -> bytes:
        """The response body, once every choice has ended."""


class Stream(Protocol):
    """Builds a response that is sent as events."""

    def first(self) -> bytes:
        """Events that may be sent before there is a token."""

    def push(self, index: int, output: RequestOutput) -> bytes:
        """The events of a choice's next delta; b"" if there is nothing to show yet."""

    def end(self, usage: Usage) -> bytes:
        """What follows once every choice has ended."""


class AnswerRun:
    """Reads a generation to its end, in one piece or as a stream; use one of the two, once."""

    def __init__(
        self,
        generation: Generation,
        ticket: Settlement,
        metrics: Metrics,
        *,
        arrived: float,
        timeout_s: float,
        keep_alive_s: float,
        own_timeout_s: float | None = None,
    ) -> None:
        """`arrived`: a time of time.monotonic(). `own_timeout_s`: what the request gave itself."""
        self._generation = generation
        self._ticket = ticket
        self._metrics = metrics
        self._arrived, self._began = arrived, time.monotonic()
        self._is_own_timeout = own_timeout_s is not None and own_timeout_s < timeout_s
        self._deadline = arrived + min(timeout_s, own_timeout_s or timeout_s)
        self._keep_alive_s = keep_alive_s
        self._tally = Tally(generation.requests)
        self._first_delta_at: float | None = None
        self._last_delta_at: dict[int, float] = {}
        self._ended_at: float | None = None
        self._stop_error: ApiError | None = None
        self._outcome = "abort"
        self._closed = False

    def stop(self, reason: StopReason) -> None:
        """It ends with that error, whatever else befalls it now, and is charged as it is."""
        revoked = reason == "revoked"
        self._stop_error = errors.key_revoked() if revoked else errors.request_cancelled()
        self._generation.interrupt(self._stop_error)

    def output_so_far(self) -> int:
        """Tokens of all choices that have arrived."""
        return self._tally.total().completion_tokens

    def server_timing(self) -> str:
        """The phases that are over, in milliseconds, for the header of that name."""
        phases = [("queue", 0.0, self._ticket.queued_s)]
        if self._first_delta_at is not None:
            phases.append(("prefill", self._began, self._first_delta_at))
            if self._ended_at is not None:
                phases.append(("decode", self._first_delta_at, self._ended_at))
        return ", ".join(f"{name};dur={1000 * (end - start):.1f}" for name, start, end in phases)

    async def answer(self, whole: Whole) -> bytes:
        """The whole response body.

        Raises:
            ApiError: the engine failed the request, its replica was lost, or time ran out.
        """
        try:
            async with contextlib.aclosing(self._deltas()) as deltas:
                async for batch in deltas:
                    for index, output in batch:
                        whole.push(index, output)
        except ApiError as error:
            self._metrics.answered(error.status)
            raise
        self._metrics.answered(200)
        return whole.body(self._tally.total())

    async def events(self, stream: Stream) -> AsyncGenerator[bytes, None]:
        """The response as server-sent events; a failure is the last event, without [DONE].

        One event a delta; those that arrived together are sent together.
        """
        yield stream.first()
        try:
            async with contextlib.aclosing(self._deltas()) as deltas:
                async for batch in deltas:
                    if not batch:
                        yield sse.KEEP_ALIVE
                    elif events := b"".join([stream.push(*delta) for delta in batch]):
                        yield events
        except ApiError as error:
            self._metrics.answered(error.status)
            yield sse.error_event(error)
        else:
            self._metrics.answered(200)
            yield stream.end(self._tally.total())

    def _timed_out(self) -> ApiError:
        return errors.own_timeout() if self._is_own_timeout else errors.generation_timeout()

    async def _deltas(self) -> AsyncGenerator[list[ChoiceOutput], None]:
        """Batches of deltas up to the last; an empty one after a silence of keep_alive_s."""
        try:
            async with contextlib.aclosing(self._generation.outputs(self._poll_s)) as batches:
                async for batch in batches:
                    self._measure(batch, time.monotonic())
                    at = next((at for at, delta in enumerate(batch) if _failed(delta)), None)
                    if at is not None:
                        if at:
                            yield batch[:at]
                        raise self._stop_error or _failure(batch[at].output)
                    if self._tally.unfinished and time.monotonic() >= self._deadline:
                        raise self._timed_out()
                    yield batch
            self._outcome = "ok"
        except ApiError:
            self._outcome = "error"
            raise
        except ReplicaLostError:
            self._outcome = "error"
            raise (self._stop_error or errors.replica_lost()) from None
        finally:
            self.close()

    def close(self) -> None:
        """Give the ticket back with what was used; only the first call counts."""
        if self._closed:
            return
        self._closed, self._ended_at = True, time.monotonic()
        if self._outcome == "abort":
            self._metrics.answered(CLIENT_LEFT)
        self._metrics.request_latency.observe(self._ended_at - self._arrived)
        usage = self._tally.total()
        self._metrics.used(usage)
        self._ticket.settle(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.completion_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            outcome="abort" if self._stop_error else self._outcome,
        )

    def _poll_s(self) -> float:
        """How long a silence may last: up to the next keep-alive, or the end of the time."""
        return max(0.0, min(self._keep_alive_s, self._deadline - time.monotonic()))

    def _measure(self, batch: list[ChoiceOutput], now: float) -> None:
        """Gaps are those of one choice, read at one time."""
        if batch and self._first_delta_at is None:
            self._first_delta_at = now
            self._metrics.time_to_first_token.observe(now - self._arrived)
        for delta in batch:
            self._tally.add(delta)
            before = self._last_delta_at.get(delta.choice, now)
            if before < now:
                self._metrics.inter_token_latency.observe(now - before)
            self._last_delta_at[delta.choice] = now


class RunReply(NamedTuple):
    """A run, what builds its reply, and the headers that it carries."""

    run: AnswerRun
    headers: Mapping[str, str]
    whole: Callable[[], Whole]
    stream: Callable[[], Stream]

    async def body(self) -> bytes:
        """The whole answer. Raises ApiError."""
        return await self.run.answer(self.whole())

    def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""
        return self.run.events(self.stream())

    def close(self) -> None:
        """Ends the run, whatever became of it."""
        self.run.close()

    def server_timing(self) -> str:
        """The phases that are over."""
        return self.run.server_timing()


def _failed(delta: ChoiceOutput) -> bool:
    return delta.output.finish_reason in (FinishReason.ERROR, FinishReason.ABORT)


def _failure(output: RequestOutput) -> ApiError:
    if output.error == "engine_dead" or output.finish_reason is FinishReason.ABORT:
        return errors.replica_lost()
    if output.error == "grammar_too_complex":
        return errors.grammar_too_complex()
    return errors.engine_error(output.error)
