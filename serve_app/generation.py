"""Generation: the tokens of one request, from whichever model replica runs it.

Owns submission, the wait for deltas, one resubmission when a replica dies before it accepted the
request, and the abort when the reader goes away. Knows no HTTP, no OpenAI schema, no limits and no
Ray: a replica is reached through `ModelClient`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

import msgspec
import structlog

from cluster.request import EngineRequest, RequestOutput
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
        """Run an encoded Submission to its end; cancelling the call aborts the request.

        Raises:
            ReplicaLostError: the replica died or cannot be reached.
        """


class Generation:
    """Reads one request's deltas; `outputs` may be iterated once."""

    def __init__(self, request: EngineRequest, model: ModelClient, deltas: DeltaServer) -> None:
        self._request = request
        self._model = model
        self._deltas = deltas
        self.started = False
        """Whether a replica accepted the request; it is never run again then: it may kill."""

    async def outputs(
        self, poll_s: Callable[[], float]
    ) -> AsyncGenerator[list[RequestOutput], None]:
        """Batches of deltas, the last with a finish_reason; an empty one after poll_s() of silence.

        Closing the generator, or cancelling its reader, aborts the request.

        Raises:
            ReplicaLostError: the replica died after it accepted the request, or two did before.
        """
        for attempt in range(MAX_ATTEMPTS):
            try:
                async for batch in self._attempt(attempt, poll_s):
                    yield batch
                return
            except ReplicaLostError:
                if self.started or attempt + 1 == MAX_ATTEMPTS:
                    raise

    async def _attempt(
        self, attempt: int, poll_s: Callable[[], float]
    ) -> AsyncGenerator[list[RequestOutput], None]:
        # A request id is never used twice: a dead replica's late deltas must find nobody.
        request_id = f"{self._request.request_id}.{attempt}"
        request = msgspec.structs.replace(self._request, request_id=request_id)
        stream = self._deltas.open(request_id)
        call = asyncio.create_task(self._submit(request, stream))
        finished = False
        try:
            while not finished:
                batch = await stream.take(poll_s())
                finished = bool(batch) and batch[-1].finish_reason is not None
                if batch and not self.started:
                    self.started = True
                    if batch[0] == accepted(request_id):
                        del batch[0]
                        if not batch:
                            continue
                yield batch
        finally:
            self._deltas.close_stream(stream)
            if not finished:
                call.cancel()

    async def _submit(self, request: EngineRequest, stream: DeltaStream) -> None:
        try:
            await self._model.submit(Submission(request, self._deltas.address).encode())
        except Exception as error:  # whatever it was, nobody else is left to tell the reader
            if not isinstance(error, ReplicaLostError):
                log.error("a submission failed", kind=type(error).__name__)
            stream.fail(ReplicaLostError())
        else:
            # The last delta is written before the call returns, but travels by another connection.
            loop = asyncio.get_running_loop()
            loop.call_later(_LAST_DELTA_GRACE_S, stream.fail, ReplicaLostError())
