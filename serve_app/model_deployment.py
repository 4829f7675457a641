"""ModelDeployment: one Serve replica = one tensor-parallel gang.

Owns the replica's life: it starts the engine, takes submissions, sends each step's deltas to the
ingresses that asked, reports its truth (blocks, tokens, state) to Redis, and ends itself when the
engine is dead, so that Ray Serve starts another. Knows no HTTP, no keys and no queueing.
"""

import asyncio
import contextlib
import gc
import os
from collections import defaultdict
from typing import Any

import msgspec
import structlog
from ray import serve

from cluster.engine.async_engine import AsyncEngine
from cluster.request import RequestOutput
from cluster.text.tokenizer import Tokenizer
from cluster.worker.gang import RankMain
from cluster.worker.ray_gang import RayGang, group_host
from serve_app.config import ServeConfig
from serve_app.deltas import DeltaAddress, DeltaLinks, Submission, accepted
from serve_app.replica_report import ReplicaReport
from serve_app.tenancy.store import Store

log = structlog.get_logger(__name__)

_FLUSH_S = 0.2
_STOP_S = 2.0


class _Running:
    """A submission in this replica: where its deltas go, and what its unary call waits for."""

    def __init__(self, address: DeltaAddress, choices: int) -> None:
        self.address = address
        self.unfinished = choices
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish_one(self) -> None:
        """One of its choices ended."""
        self.unfinished -= 1
        if not self.unfinished and not self.done.done():
            self.done.set_result(None)


class ModelDeployment:
    """A replica of the model: submissions in, delta frames out."""

    async def __init__(  # type: ignore[misc]
        self, values: dict[str, Any], rank_main: RankMain
    ) -> None:
        config = ServeConfig.model_validate(values)
        assert config.admission.redis_url is not None, "the builder fills it in"
        replica = serve.get_replica_context().replica_id.unique_id
        engine_config = config.engine_config()
        self._running: dict[str, _Running] = {}
        self._progress = "starting its ranks"
        self._kernels = ""
        self._links = DeltaLinks(replica, self._abort_ingress)
        self._engine = AsyncEngine(
            engine_config,
            lambda specs: RayGang(rank_main, specs),
            Tokenizer(config.model.path),
            self._deliver,
            host=group_host(),
        )
        self._report = ReplicaReport(
            Store(config.admission.redis_url, config.admission.pool),
            replica,
            engine_config.max_num_seqs,
            lambda: self._engine.stats,
            self._info,
        )
        self._tasks = [asyncio.create_task(self._report.run())]
        self._kernels = (await self._engine.start(self._note)).kernels
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection between steps need walk it again
        self._note("ready")
        self._report.state = "ready"
        self._tasks.append(asyncio.create_task(self._leave_when_dead()))

    async def submit(self, submission: bytes) -> None:
        """Run one encoded Submission to its end; cancelling the call aborts all of it.

        Raises:
            EngineDeadError: the gang is gone; the replica is about to leave.
            OSError: the ingress that waits for the deltas cannot be reached.
        """
        submitted = Submission.decode(submission)
        await self._links.connect(submitted.address)
        running = _Running(submitted.address, len(submitted.requests))
        try:
            for request in submitted.requests:
                self._running[request.request_id] = running
                self._engine.submit(request)
            self._links.send(submitted.address, [accepted(submitted.requests[0].request_id)])
            await running.done
        finally:
            for request in submitted.requests:
                self._engine.abort(request.request_id)
                self._running.pop(request.request_id, None)

    async def check_health(self) -> None:
        """Raises EngineDeadError when a rank, or the step loop, is gone or stuck."""
        await self._engine.check_health()
        if self._tasks[0].done():
            raise RuntimeError("this replica has stopped reporting to Redis")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The figures that `serve_app.autoscaling.BacklogPolicy` decides on."""
        return self._report.autoscaling_stats()

    def _note(self, progress: str) -> None:
        self._progress = progress

    def _info(self) -> dict[str, Any]:
        """What `deeprequest status` and /metrics show of this replica."""
        return {
            "progress": self._progress,
            "kernels": self._kernels,
            "ranks": [msgspec.to_builtins(rank) for rank in self._engine.ranks()],
            "stats": msgspec.structs.asdict(self._engine.stats),
        }

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        """One frame per ingress for what one engine step produced."""
        frames: dict[DeltaAddress, list[RequestOutput]] = defaultdict(list)
        for output in outputs:
            running = self._running.get(output.request_id)
            if running is None:
                continue
            frames[running.address].append(output)
            if output.finish_reason is not None:
                running.finish_one()
        for address, frame in frames.items():
            self._links.send(address, frame)

    def _abort_ingress(self, address: DeltaAddress) -> None:
        for request_id, running in list(self._running.items()):
            if running.address == address:
                self._engine.abort(request_id)

    async def _leave_when_dead(self) -> None:
        """Tell Redis at once, let the error events out, and end the process."""
        reason = await self._engine.dead
        log.error("the engine is dead; this replica ends", reason=reason)
        await self._report.leave()
        await self._links.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self._engine.stop()
        await asyncio.sleep(_FLUSH_S)
        os._exit(1)
