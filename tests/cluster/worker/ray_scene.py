"""A replica in a placement group on a private Ray, played in a process of its own.

    python -m tests.cluster.worker.ray_scene <model> <short directory for Ray>

prints one JSON object: what was seen.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config import EngineConfig
from cluster.engine.async_engine import AsyncEngine, EngineDeadError
from cluster.request import EngineRequest, RequestOutput, SamplingParams
from cluster.text.tokenizer import Tokenizer
from cluster.worker.gang import RankSpec
from cluster.worker.ray_gang import RayGang, group_host
from tests.cluster.engine import fake_rank

RANK_CPUS = 1.5
BUNDLES = [1.0, RANK_CPUS, RANK_CPUS]
"""All CPUs of this Ray: a rank that asks for 1.5 finds room in its bundle only."""


class Replica:
    """What a Serve replica does with its engine."""

    def __init__(self, model: str) -> None:
        self._model = model

    async def start(self, behaviour: str = "") -> str:
        config = EngineConfig(model_path=f"fake?step_s=0.002&{behaviour}", tensor_parallel_size=2)
        self._outputs: list[RequestOutput] = []
        self._engine = AsyncEngine(
            config,
            lambda specs: RayGang(fake_rank.main, specs, num_cpus=RANK_CPUS),
            Tokenizer(self._model),
            self._outputs.extend,
            group_host(),
        )
        try:
            await self._engine.start()
        except EngineDeadError as error:
            return str(error)
        return "ready"

    async def pids(self) -> list[int]:
        return [info.pid for info in self._engine.ranks()]

    async def generate(self) -> list[int]:
        request = EngineRequest("g", [1, 2, 3], SamplingParams(max_tokens=20, ignore_eos=True))
        return [t async for output in self._engine.generate(request) for t in output.token_ids]

    async def lose_rank(self, rank: int) -> dict[str, Any]:
        params = SamplingParams(max_tokens=10**5, ignore_eos=True)
        self._engine.submit(EngineRequest("r", [1], params))
        while not self._outputs:
            await asyncio.sleep(0.01)
        os.kill(self._engine.ranks()[rank].pid, signal.SIGKILL)
        reason = await self._engine.dead
        return {"reason": reason, "error": self._outputs[-1].error}

    async def stop(self) -> None:
        await self._engine.stop()


def all_gone(pids: list[int]) -> bool:
    alive = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            alive.append(psutil.Process(pid))
    return not psutil.wait_procs(alive, timeout=10)[1]


def visible_gpus(directory: Path) -> list[str]:
    """What ranks with a GPU each find in their environment; Ray only believes in the GPUs."""
    config = EngineConfig(model_path="none", tensor_parallel_size=2, device="cuda")
    specs = [
        RankSpec(
            config=config,
            rank=rank,
            size=2,
            replica_address="unix:///nowhere",
            token="",
            directory=str(directory),
        )
        for rank in range(2)
    ]
    gang = RayGang(fake_rank.note_gpus, specs)
    while len(gang.dead()) < len(specs):
        time.sleep(0.05)
    gang.kill()
    return [(directory / f"gpus {rank}").read_text() for rank in range(2)]


def play(model: str, directory: Path) -> dict[str, Any]:
    seen: dict[str, Any] = {"gpus": visible_gpus(directory)}
    group = placement_group([{"CPU": cpus} for cpus in BUNDLES], strategy="STRICT_PACK")
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    replica = ray.remote(Replica).options(num_cpus=0.1, scheduling_strategy=strategy).remote(model)
    seen["start"] = ray.get(replica.start.remote())
    seen["tokens"] = ray.get(replica.generate.remote())
    pids = ray.get(replica.pids.remote())
    seen["lost"] = ray.get(replica.lose_rank.remote(1))
    ray.get(replica.stop.remote())
    seen["gone after a kill"] = all_gone(pids)
    seen["failed start"] = ray.get(replica.start.remote("raise_in_load=1"))
    seen["second start"] = ray.get(replica.start.remote())
    pids = ray.get(replica.pids.remote())
    ray.kill(replica)
    seen["gone with the replica"] = all_gone(pids)
    return seen


def main() -> None:
    model, directory = sys.argv[1], Path(sys.argv[2])
    ray.init(
        address="local",
        num_cpus=sum(BUNDLES),
        num_gpus=2,
        include_dashboard=False,
        _temp_dir=str(directory),
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        seen = play(model, directory)
    finally:
        ray.shutdown()
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
