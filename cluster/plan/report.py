"""A plan as plain values: what `deeprequest plan --json` prints, and every table is made of.

Owns the names of the fields. Bytes are per rank where the field is under `per_rank`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.plan.deployment import EXPECTED_SHARE, Deployment, remedies
from cluster.plan.memory import tensor_parallel_sizes

LENGTHS = (2_048, 8_192, 32_768)
BATCHES = (1, 8, 32, 128, 256)


def report(
    deployment: Deployment,
    *,
    lengths: Sequence[int] = LENGTHS,
    batches: Sequence[int] = BATCHES,
    context: int = 2_048,
    prompt: int = 2_048,
) -> dict[str, Any]:
    """Everything a plan says; where the ranks do not divide the model, only why and what would.

    Args:
        lengths: of requests whose number at once is told, beside the longest context.
        context: tokens in each request's cache where speed is told.
        prompt: tokens of the prompt whose time is told.
    """
    sizes = tensor_parallel_sizes(deployment.shape)
    found = {"settings": _settings(deployment), "device": _device(deployment)}
    try:
        problem = deployment.problem
    except ValueError as error:
        enough = [size for size in sizes if replace(deployment, tp=size).fits]
        lines = [f"tensor_parallel_size: {size}" for size in enough]
        refused = {"fits": False, "problem": str(error), "remedies": lines}
        return found | refused | {"tensor_parallel_sizes": sizes}
    longest = deployment.longest_context
    known = sorted({*lengths, longest} - {0})
    return found | {
        "fits": problem is None,
        "problem": problem,
        "remedies": [] if problem is None else remedies(deployment),
        "tensor_parallel_sizes": sizes,
        "per_rank": _per_rank(deployment),
        "kv_bytes_per_token": deployment.token_bytes * deployment.tp,
        "kv_tokens": deployment.kv_tokens,
        "longest_context": longest,
        "concurrency": [
            {"length": length, "requests": deployment.concurrency(length)} for length in known
        ],
        "one_stream": _one_stream(deployment),
        "decode": [_decode(deployment, batch, context) for batch in batches],
        "prefill": _prefill(deployment, prompt),
    }


def _settings(deployment: Deployment) -> dict[str, Any]:
    precision = deployment.precision
    return {
        "tensor_parallel_size": deployment.tp,
        "max_model_len": deployment.max_model_len,
        "max_position": deployment.max_position,
        "gpu_memory_utilization": deployment.utilization,
        "max_num_seqs": deployment.max_num_seqs,
        "weight_bytes_per_number": precision.linear,
        "kv_bytes_per_number": precision.kv,
        "parameters": deployment.shape.num_params,
    }


def _device(deployment: Deployment) -> dict[str, Any]:
    device = deployment.device
    return {
        "name": device.name,
        "count": 1 if device.is_cpu else deployment.tp,
        "memory_gib": device.memory_gib,
        "gb_per_s": device.gb_per_s,
        "tflops": device.tflops if deployment.precision.linear > 1 else device.tflops_8bit,
        "price_per_hour": device.price_per_hour,
    }


def _per_rank(deployment: Deployment) -> dict[str, int]:
    return {
        "weight_bytes": deployment.weight_bytes,
        "overhead_bytes": deployment.overhead_bytes,
        "kv_bytes_per_token": deployment.token_bytes,
        "kv_cache_bytes": deployment.kv_pool_bytes,
        "total_bytes": deployment.rank_bytes,
    }


def _one_stream(deployment: Deployment) -> dict[str, float]:
    """The floor of one request's token while its cache is short: weights and all-reduces alone."""
    seconds = deployment.decode_seconds(1, 0)
    return {"floor_ms": round(seconds * 1e3, 3), "floor_tokens_per_s": round(1 / seconds, 1)}


def _decode(deployment: Deployment, batch: int, context: int) -> dict[str, Any]:
    """A step of `batch` requests: its floor, what may be expected of it and what that costs."""
    seconds = deployment.decode_seconds(batch, context)
    expected = EXPECTED_SHARE * batch / seconds
    return {
        "batch": batch,
        "context": context,
        "fits": deployment.concurrency(context) >= batch,
        "floor_ms": round(seconds * 1e3, 3),
        "floor_tokens_per_s": round(batch / seconds, 1),
        "expected_tokens_per_s": round(expected, 1),
        "cost_per_million_tokens": round(_cost(deployment, expected), 6),
    }


def _prefill(deployment: Deployment, prompt: int) -> dict[str, Any]:
    seconds = deployment.prefill_seconds(prompt)
    expected = EXPECTED_SHARE * prompt / seconds
    return {
        "length": prompt,
        "floor_ms": round(seconds * 1e3, 3),
        "floor_tokens_per_s": round(prompt / seconds, 1),
        "expected_tokens_per_s": round(expected, 1),
        "cost_per_million_tokens": round(_cost(deployment, expected), 6),
    }


def _cost(deployment: Deployment, tokens_per_s: float) -> float:
    """Of a million tokens at a rate, all devices together."""
    device = deployment.device
    devices = 1 if device.is_cpu else deployment.tp
    return devices * device.price_per_hour / 3600 / tokens_per_s * 1e6
