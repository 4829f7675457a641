"""AsyncEngine: the asyncio face of an engine core in another process.

Owns the requests in flight in this replica: their text, and that each ends with exactly one final
output, whatever becomes of the engine. Never blocks the event loop. Knows no HTTP and no Ray.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable

from cluster.config import EngineConfig
from cluster.engine.core_client import CoreClient, EngineDeadError, GangFactory, RankInfo
from cluster.engine.core_messages import EngineFacts
from cluster.engine.output_processor import OutputProcessor
from cluster.request import (
    EngineCoreOutputs,
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestOutput,
)
from cluster.text.tokenizer import Tokenizer

__all__ = ["AsyncEngine", "EngineDeadError", "EngineFacts", "RankInfo"]

ENGINE_DEAD = "engine_dead"
"""The error of requests that were running when the engine died."""

OnOutputs = Callable[[list[RequestOutput]], None]


class AsyncEngine:
    """Requests in, text deltas out; to be made and used in one event loop.

    Attributes:
        stats: the engine's account of its load after its latest step.
        dead: resolves with the reason if the engine dies; pending as long as it lives and after
            `stop`.
    """

    def __init__(
        self,
        config: EngineConfig,
        gang_factory: GangFactory,
        tokenizer: Tokenizer,
        on_outputs: OnOutputs = lambda _: None,
        host: str | None = None,
    ) -> None:
        """
        Args:
            gang_factory: starts a process per RankSpec, e.g. `lambda specs: ProcessGang(main,
                specs)` with `cluster.engine.rank_main.main`.
            on_outputs: called once per step with the deltas of all submitted requests.
            host: this node's address when ranks run on other nodes; None keeps all on Unix sockets.
        """
        self.stats = EngineStats()
        self.dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._client = CoreClient(config, gang_factory, self._step, self._die, host)
        self._texts = OutputProcessor(tokenizer)
        self._on_outputs = on_outputs
        self._running: dict[str, OnOutputs] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    async def start(self, on_progress: Callable[[str], None] | None = None) -> EngineFacts:
        """Start the ranks; returns when all have computed a step.

        Raises:
            EngineDeadError: a rank failed; the message names it and its reason. Nothing is left.
        """
        return await self._client.start(on_progress)

    def submit(self, request: EngineRequest) -> None:
        """Let a request run; its deltas go to `on_outputs`. Its id must never be used again.

        A request that can never be computed ends with finish_reason ERROR and the reason.

        Raises:
            EngineDeadError: the engine is dead, draining or stopped.
            ValueError: the id is in use, or a stop string is empty.
        """
        self._submit(request, self._on_outputs)

    def abort(self, request_id: str) -> None:
        """End a request; a final output with finish_reason ABORT follows, if it was running."""
        sink = self._running.pop(request_id, None)
        if sink is None:
            return
        usage = self._texts.discard(request_id)
        self._client.abort(request_id)
        output = RequestOutput(request_id, finish_reason=FinishReason.ABORT, usage=usage)
        asyncio.get_running_loop().call_soon(sink, [output])
        self._note_idle()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        """One request's deltas, the last with a finish_reason; closing it early aborts.

        Raises:
            EngineDeadError, ValueError: as `submit`.
        """
        arrived: asyncio.Queue[RequestOutput] = asyncio.Queue()

        def put(outputs: list[RequestOutput]) -> None:
            for output in outputs:
                arrived.put_nowait(output)

        self._submit(request, put)
        try:
            finished = False
            while not finished:
                output = await arrived.get()
                finished = output.finish_reason is not None
                yield output
        finally:
            self.abort(request.request_id)

    @property
    def num_running(self) -> int:
        """Requests submitted here that have not ended."""
        return len(self._running)

    def ranks(self) -> list[RankInfo]:
        """The processes behind this engine, by rank."""
        return self._client.ranks()

    async def check_health(self) -> None:
        """Raises EngineDeadError if a rank's socket, heartbeat or step said so, with the reason."""
        if self._client.reason is not None:
            raise EngineDeadError(self._client.reason)

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests and let the running ones end; whether all did in time."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Abort what runs and end all ranks; leaves no process, no socket and no file."""
        for request_id in list(self._running):
            self.abort(request_id)
        await self._client.stop()

    def _submit(self, request: EngineRequest, sink: OnOutputs) -> None:
        if self._client.reason is not None:
            raise EngineDeadError(self._client.reason)
        if self._draining:
            raise EngineDeadError("the engine is draining")
        self._texts.add(request)
        self._running[request.request_id] = sink
        self._idle.clear()
        self._client.add(request)

    def _step(self, step: EngineCoreOutputs) -> None:
        self.stats = step.stats
        deltas, matched_stop_strings = self._texts.process(step.outputs)
        for request_id in matched_stop_strings:
            self._client.abort(request_id)
        self._deliver(deltas)

    def _die(self, reason: str) -> None:
        if not self.dead.done():
            self.dead.set_result(reason)
        self._deliver(
            [
                RequestOutput(
                    request_id,
                    finish_reason=FinishReason.ERROR,
                    usage=self._texts.discard(request_id),
                    error=ENGINE_DEAD,
                )
                for request_id in self._running
            ]
        )

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        """One call per sink."""
        by_sink: dict[OnOutputs, list[RequestOutput]] = {}
        latest: OnOutputs | None = None
        batch: list[RequestOutput] = []
        for output in outputs:
            sink = self._running[output.request_id]
            if sink is not latest:
                latest, batch = sink, by_sink.setdefault(sink, [])
            batch.append(output)
            if output.finish_reason is not None:
                del self._running[output.request_id]
        for sink, deltas in by_sink.items():
            sink(deltas)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._running:
            self._idle.set()
