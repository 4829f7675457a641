"""One rank's share of TP 8, 4 and 2, computed alone: what is left to the all-reduces."""

import gc
from typing import Any

import torch

from cluster.plan.memory import BF16
from tests.gpu.bench import Bench
from tests.gpu.sweep import sweep


@torch.inference_mode()
def run(bench: Bench, told: dict[str, Any]) -> None:
    for size in (8, 4, 2):
        if bench.out_of_time:
            told[f"tp {size}"] = "out of time"
            continue
        told[f"tp {size}"] = {}
        worker = bench.started(dtype="bfloat16", tensor_parallel_size=size)
        sweep(bench, worker, BF16, told[f"tp {size}"])
        del worker
        gc.collect()
        bench.device.free_memory()
