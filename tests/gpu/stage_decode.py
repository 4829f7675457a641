"""The model in bfloat16 over batch sizes."""

from typing import Any

import torch

from cluster.plan.memory import BF16
from tests.gpu.bench import Bench
from tests.gpu.sweep import sweep


@torch.inference_mode()
def run(bench: Bench, told: dict[str, Any]) -> None:
    sweep(bench, bench.started(dtype="bfloat16"), BF16, told)
