"""RayGang: ranks as Ray actors in the replica's placement group.

Owns their placement and their end; the one door from the engine to Ray. No step ever waits on a
Ray call: an actor's only task is to be its rank, for as long as the rank lives.

    bundle     0         1       2      ...  N
    process    replica   rank 0  rank 1      rank N-1
"""

import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.util import get_current_placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.worker.gang import Launch, RankMain, RankSpec, visible_gpus

KILL_TIMEOUT_S = 5.0


class RankActor:
    """What Ray starts: an empty process that becomes a rank."""

    def gpus(self) -> tuple[str, list[str]]:
        """The node, and the GPUs that Ray gave this actor there."""
        context = ray.get_runtime_context()
        return context.get_node_id(), context.get_accelerator_ids().get("GPU", [])

    def run(self, launch: bytes, *gpus: tuple[str, list[str]]) -> None:
        """Returns never, save by the end of the process. `gpus`: of all ranks, if they use any."""
        told = Launch.decode(launch)
        visible = visible_gpus(told.spec.rank, gpus) if gpus else None
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        told.run()


class RayGang:
    """One actor per spec. In a placement group of N + 1 bundles rank r gets bundle r + 1.

    The actors belong to the process that made them: Ray ends them when it is gone.
    """

    def __init__(
        self,
        main: RankMain,
        specs: Sequence[RankSpec],
        num_cpus: float = 0.1,
        num_gpus: float | None = None,
    ) -> None:
        """Start the ranks, from within the replica; needs an initialised Ray.

        Args:
            num_cpus, num_gpus: what each actor asks of its bundle. Without num_gpus it is one GPU
                if the config's device is "cuda", else none; Ray hides the GPUs nobody asked for.

        Raises:
            ValueError: `main` cannot be found by name in another process, or the placement group
                is too small.
        """
        if num_gpus is None:
            num_gpus = 1.0 if specs[0].config.device == "cuda" else 0.0
        launches = [Launch.of(main, spec) for spec in specs]
        strategies = _strategies(len(specs))
        actor = ray.remote(RankActor)
        self._actors: dict[int, Any] = {}
        for launch, strategy in zip(launches, strategies, strict=True):
            self._actors[launch.spec.rank] = actor.options(
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=strategy,
            ).remote()
        # References: each actor waits for all answers before it runs, nothing waits here.
        gpus = [handle.gpus.remote() for handle in self._actors.values()] if num_gpus else []
        self._runs: dict[Any, int] = {
            self._actors[launch.spec.rank].run.remote(launch.encode(), *gpus): launch.spec.rank
            for launch in launches
        }

    def dead(self) -> dict[int, str]:
        runs = list(self._runs)
        ended, _ = ray.wait(runs, num_returns=len(runs), timeout=0, fetch_local=False)
        return {self._runs[run]: _end(run) for run in ended}

    def kill(self) -> None:
        for handle in self._actors.values():
            ray.kill(handle, no_restart=True)
        ray.wait(list(self._runs), num_returns=len(self._runs), timeout=KILL_TIMEOUT_S)


def group_host() -> str | None:
    """This node's address if the current placement group spans several nodes, else None."""
    group = get_current_placement_group()
    if group is None:
        return None
    nodes = set(placement_group_table(group)["bundles_to_node_id"].values())
    return str(ray.util.get_node_ip_address()) if len(nodes) > 1 else None


def _strategies(num_ranks: int) -> list[Any]:
    group = get_current_placement_group()
    if group is None:
        return ["DEFAULT"] * num_ranks
    spare = group.bundle_count - num_ranks
    if spare not in (0, 1):
        raise ValueError(
            f"the placement group has {group.bundle_count} bundles, but {num_ranks} ranks need "
            f"{num_ranks + 1}: one for the replica, then one each"
        )
    return [
        PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=rank + spare
        )
        for rank in range(num_ranks)
    ]


def _end(run: Any) -> str:
    try:
        ray.get(run)
    except ray.exceptions.RayError as error:
        return str(error).strip().splitlines()[-1]
    return "returned"
