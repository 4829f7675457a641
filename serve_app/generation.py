"""Generation: the tokens of one request's choices, from whichever model replica runs them.

Owns submission, the wait for deltas, one resubmission when a replica dies before it accepted the
request, and the abort when the reader goes away. Knows no HTTP, no OpenAI schema, no limits and no
Ray: a replica is reached through `ModelClient`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

import msgspec
import structlog

from cluster.request import EngineRequest
from serve_app.choices import ChoiceOutput
from serve_app.deltas import (
    DeltaServer,
    DeltaStream,
    ReplicaLostError,
    Submission,
    accepted,
)

log = structlog.get_logger(__name__)

MAX_ATTEMPTS = 2
_LAST_DELTA_GRACE_S = 5.0


class ModelClient(Protocol):
    """One call per request, which lasts as long as the request."""

    async def submit(self, submission: bytes) -> None:
        """Run an encoded Submission to its end; cancelling the call aborts all of it.

        Raises:
            ReplicaLostError: the replica died or cannot be reached.
        """


class Generation:
    """Reads one request's deltas; `outputs` may be iterated once."""

    def __init__(
        self, requests: Sequence[EngineRequest], model: ModelClient, deltas: DeltaServer
    ) -> None:
        """`requests`: one per choice; all run on the same replica."""
        self.requests = requests
        self._model = model
        self._deltas = deltas
        self.started = False
        """Whether a replica accepted the request; it is never run again then: it may kill."""
        self._stream: DeltaStream | None = None
        self._interruption: Exception | None = None

    async def outputs(
        self, poll_s: Callable[[], float]
    ) -> AsyncGenerator[list[ChoiceOutput], None]:
        """Batches of deltas until every choice had one with a finish_reason; an empty batch after
        poll_s() of silence.

        Closing the generator, or cancelling its reader, aborts the request.

        Raises:
            ReplicaLostError: the replica died after it accepted the request, or two did before.
            Exception: what `interrupt` was given.
        """
        for attempt in range(MAX_ATTEMPTS):
            try:
                async for batch in self._attempt(attempt, poll_s):
                    yield batch
                return
            except ReplicaLostError:
                if self.started or attempt + 1 == MAX_ATTEMPTS:
                    raise

    def interrupt(self, error: Exception) -> None:
        """Aborts the request; its reader gets what has arrived, then `error`."""
        self._interruption = error
        if self._stream is not None:
            self._stream.fail(error)

    async def _attempt(
        self, attempt: int, poll_s: Callable[[], float]
    ) -> AsyncGenerator[list[ChoiceOutput], None]:
        requests = [_renamed(request, attempt) for request in self.requests]
        index_of = {request.request_id: index for index, request in enumerate(requests)}
        stream = self._stream = self._deltas.open(index_of)
        if self._interruption is not None:
            stream.fail(self._interruption)
        call = asyncio.create_task(self._submit(requests, stream))
        unfinished = len(requests)
        try:
            while unfinished:
                batch = await stream.take(poll_s())
                if batch and not self.started:
                    self.started = True
                    if batch[0] == accepted(requests[0].request_id):
                        del batch[0]
                        if not batch:
                            continue
                unfinished -= sum(output.finish_reason is not None for output in batch)
                yield [ChoiceOutput(index_of[output.request_id], output) for output in batch]
        finally:
            self._deltas.close_stream(stream)
            if unfinished:
                call.cancel()

    async def _submit(self, requests: list[EngineRequest], stream: DeltaStream) -> None:
        try:
            await self._model.submit(Submission(requests, self._deltas.address).encode())
        except Exception as error:  # whatever it was, nobody else is left to tell the reader
            if not isinstance(error, ReplicaLostError):
                log.error("a submission failed", kind=type(error).__name__)
            stream.fail(ReplicaLostError())
        else:
            # The last delta is written before the call returns, but travels by another connection.
            loop = asyncio.get_running_loop()
            loop.call_later(_LAST_DELTA_GRACE_S, stream.fail, ReplicaLostError())


def _renamed(request: EngineRequest, attempt: int) -> EngineRequest:
    """An id is never used twice: a dead replica's late deltas must find nobody."""
    prompt_of = request.prompt_of
    return msgspec.structs.replace(
        request,
        request_id=f"{request.request_id}.{attempt}",
        prompt_of=None if prompt_of is None else f"{prompt_of}.{attempt}",
    )
