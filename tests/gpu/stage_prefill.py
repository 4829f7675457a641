"""Prompts: a chunk's share of the measured product rate, and the longest prompt there may be."""

import time
from typing import Any

import torch

from tests.gpu.bench import Bench, chunk_inputs
from tests.gpu.random_model import RandomWorker


@torch.inference_mode()
def run(bench: Bench, told: dict[str, Any]) -> None:
    settings = {"dtype": "bfloat16", "max_num_seqs": 1, "cuda_graph_sizes": []}
    worker = bench.started(**settings, quantization=bench.quantization)
    told["quantization"] = bench.quantization
    for length in bench.pick((1024, 8192), (100, 300)):
        told[f"chunk of {length}"] = _chunk(bench, worker, length)
        bench.save()
    told["longest"] = _longest(bench, worker)


def _chunk(bench: Bench, worker: RandomWorker, length: int) -> dict[str, Any]:
    shape = worker.model_config.shape
    seconds = bench.seconds(lambda: _compute(worker, length, 0))
    params = shape.num_layers * shape.layer_linear_params
    qkv = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim * shape.hidden_size
    unasked = shape.layer_linear_params - qkv  # of the last layer, but for the last token
    linear = 2 * length * (params - unasked)
    attention = 2 * length * length * shape.num_heads * shape.head_dim * shape.num_layers
    tflops = (linear + attention) / seconds / 1e12
    told = {"tokens_per_s": length / seconds, "tflops": tflops}
    ceilings = bench.done.get("ceilings", {})
    if ceilings.get("ok"):
        told["share_of_matmul_rate"] = tflops / ceilings["bf16_tflops"]
    return told


def _longest(bench: Bench, worker: RandomWorker) -> dict[str, Any]:
    """All that fits of 131,072 tokens, in chunks."""
    length = worker.facts.max_model_len
    chunk = worker.config.max_num_batched_tokens
    worker.device.reset_peak()
    begun = time.perf_counter()
    for before in range(0, length, chunk):
        if bench.out_of_time:
            return {"out of time after": before}
        _compute(worker, min(chunk, length - before), before)
    worker.device.synchronize()
    seconds = time.perf_counter() - begun
    return {
        "tokens": length,
        "seconds": seconds,
        "tokens_per_s": length / seconds,
        "peak_gib": worker.device.peak_above_now() / 2**30,
    }


def _compute(worker: RandomWorker, length: int, before: int) -> None:
    token_ids, metadata = chunk_inputs(
        length, before, worker.facts.block_size, worker.device.torch_device
    )
    last = token_ids.new_tensor([length - 1])
    worker._loaded()(token_ids, worker.kv_cache, worker._backend.plan(metadata), last)
