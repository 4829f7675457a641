"""The model in bfloat16 over batch sizes."""

from typing import Any

import torch

from cluster.plan.memory import BF16, GIB
from tests.gpu.bench import Bench
from tests.gpu.sweep import sweep


@torch.inference_mode()
def run(bench: Bench, told: dict[str, Any]) -> None:
    # drafts take room for more logits, which 80 GB have not
    roomy = bench.device.is_cuda and bench.device.total_memory() > 100 * GIB
    speculation = "ngram" if roomy else "off"
    sweep(bench, bench.started(dtype="bfloat16", speculation=speculation), BF16, told)
