"""One rank's share of TP 2, 4 and 8, computed alone: what is left to the all-reduces."""

import gc
from typing import Any

import torch

from cluster.plan.memory import BF16
from tests.gpu.bench import Bench
from tests.gpu.sweep import sweep


@torch.inference_mode()
def run(bench: Bench) -> dict[str, Any]:
    told = {}
    for size in (2, 4, 8):
        worker = bench.started(dtype="bfloat16", tensor_parallel_size=size)
        told[f"tp {size}"] = sweep(bench, worker, BF16)
        del worker
        gc.collect()
        bench.device.free_memory()
    return told
