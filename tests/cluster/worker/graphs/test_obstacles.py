from typing import Any

import pytest
import torch

from cluster.config import EngineConfig
from cluster.device import Device
from cluster.model.collectives import TorchCollectives
from cluster.model.tp_group import TPGroup
from cluster.worker.graphs.obstacles import obstacle

GPU = Device(torch.device("cuda", 0))


class Backend:
    name = "some"

    def __init__(self, queries: int) -> None:
        self.captured_queries = queries


def told(device: Device = GPU, queries: int = 1, by: str = "nccl", **settings: Any) -> Any:
    backend: Any = Backend(queries)
    group = TPGroup(0, 2, TorchCollectives(by, None))
    return obstacle(EngineConfig(model_path="m", **settings), device, backend, group)


def test_steps_are_recorded_where_nothing_hinders() -> None:
    assert told() is None
    assert told(by="nccl in order") is None
    assert told(cuda_graph_sizes=(1, 4)) is None


def test_the_obstacle_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(cuda_graph_sizes=()) == "cuda_graph_sizes is empty"
    assert told(device=Device(torch.device("cpu"))) == "cpu records nothing"
    assert "attention backend some works on the host" in told(queries=0)
    assert "collectives by gloo wait on the host" in told(by="gloo")
