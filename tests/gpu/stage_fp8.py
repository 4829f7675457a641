"""The model with its layers in e4m3, then its cache too, and how much faster than bfloat16."""

import dataclasses
import gc
from typing import Any, Literal

import torch

from cluster.plan.memory import PRECISIONS
from tests.gpu.bench import Bench
from tests.gpu.sweep import sweep


@torch.inference_mode()
def run(bench: Bench, told: dict[str, Any]) -> None:
    plain = bench.done.get("decode", {}).get("batches", {})
    caches: dict[str, Literal["auto", "fp8"]] = {"weights": "auto", "weights and cache": "fp8"}
    for name, cache in caches.items():
        part = told[name] = {}
        try:
            settings = {"quantization": "fp8", "kv_cache_dtype": cache}
            _measure(bench, settings, plain, part)
        except (ValueError, RuntimeError) as error:
            part["error"] = f"{type(error).__name__}: {error}"
        bench.save()
        gc.collect()
        bench.device.free_memory()
    failed = [name for name in caches if "error" in told[name]]
    if failed:
        raise RuntimeError(f"no figures of: {', '.join(failed)}")


def _measure(
    bench: Bench, settings: dict[str, Any], plain: dict[str, Any], part: dict[str, Any]
) -> None:
    worker = bench.started(dtype="bfloat16", **settings)
    precision = PRECISIONS["fp8"]
    if settings["kv_cache_dtype"] == "fp8":
        precision = dataclasses.replace(precision, kv=1)
    sweep(bench, worker, precision, part)
    for batch, row in part["batches"].items():
        if isinstance(row, dict) and isinstance(plain.get(batch), dict):
            row["over_bf16"] = row["tokens_per_s"] / plain[batch]["tokens_per_s"]
