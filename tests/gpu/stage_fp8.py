"""The model with its layers in e4m3 over batch sizes, and how much faster it is than bfloat16."""

from typing import Any

import torch

from cluster.plan.memory import PRECISIONS
from tests.gpu.bench import Bench
from tests.gpu.sweep import sweep


@torch.inference_mode()
def run(bench: Bench) -> dict[str, Any]:
    told = sweep(bench, bench.started(dtype="bfloat16", quantization="fp8"), PRECISIONS["fp8"])
    plain = bench.done.get("decode", {}).get("batches", {})
    for batch, row in told["batches"].items():
        if isinstance(row, dict) and isinstance(plain.get(batch), dict):
            row["over_bf16"] = row["tokens_per_s"] / plain[batch]["tokens_per_s"]
    return told
