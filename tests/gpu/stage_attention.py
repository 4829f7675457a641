"""Paged decode attention in bytes a second of keys and values, prefill in products a second."""

import itertools
from typing import Any

import torch

from cluster.attention.backend import RotaryTable
from cluster.model.tp_group import TPGroup
from tests.gpu.bench import Bench, chunk_inputs, decode_inputs
from tests.gpu.random_model import TINY, RandomWorker

BACKENDS = ("triton", "flash_attn", "cpu")
KV_BYTES = 16 << 30
"""Of one layer's cache at most."""
UNCACHED_BYTES = 256 << 20
"""Read in turn, so that nothing is left of it in a device's own cache (50 MB on Hopper)."""


@torch.inference_mode()
def run(bench: Bench, told: dict[str, Any]) -> None:
    heads = bench.pick(((40, 8), (20, 4), (10, 2), (5, 1)), ((5, 1),))
    for name, pair, page in itertools.product(BACKENDS, heads, bench.pick((64, 128, 256), (64,))):
        if name == "cpu" and (bench.device.is_cuda or page != 64):
            continue
        case = f"{name} {pair[0]}/{pair[1]} page {page}"
        told[case] = "out of time" if bench.out_of_time else _measure(bench, name, pair, page)
        bench.save()


def _measure(bench: Bench, name: str, heads: tuple[int, int], page: int) -> Any:
    shape = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": 128}
    config = bench.config(
        "heads", TINY | shape, attention_backend=name, block_size=page, num_kv_blocks=40
    )
    try:
        backend = RandomWorker(config, 0, TPGroup())._backend
    except (ValueError, RuntimeError, ImportError) as absent:
        return f"not here: {absent}"
    device, dtype = bench.device.torch_device, bench.device.dtype("auto")
    token_bytes = 2 * heads[1] * 128 * dtype.itemsize
    still = torch.zeros(131_072, 64, device=device)
    rotary = RotaryTable(still.cos(), still.sin())
    told = {}
    for batch, context in itertools.product(
        bench.pick((1, 8, 32, 128, 256), (1, 3)), bench.pick((1024, 8192, 32_768, 131_072), (200,))
    ):
        if batch * context * token_bytes > KV_BYTES or bench.out_of_time:
            continue
        _, metadata = decode_inputs(batch, context, page, device)
        blocks = metadata.block_table.numel() + 1
        copies = bench.pick(-(-UNCACHED_BYTES // (batch * context * token_bytes)), 2)
        layer_shape = (2, blocks, page, heads[1], 128)
        layers = itertools.cycle(
            [torch.zeros(layer_shape, dtype=dtype, device=device) for _ in range(copies)]
        )
        qkv = torch.randn(batch, heads[0] + 2 * heads[1], 128, device=device).to(dtype)
        plan = backend.plan(metadata)
        seconds = bench.seconds(lambda: plan.attend(next(layers), qkv, rotary))  # noqa: B023
        told[f"decode {batch} x {context}"] = {
            "ms": 1e3 * seconds,
            "gb_per_s": batch * context * token_bytes / seconds / 1e9,
        }
    for length, before in bench.pick(((8192, 0), (8192, 32_768), (32_768, 0)), ((100, 100),)):
        _, metadata = chunk_inputs(length, before, page, device)
        blocks = metadata.block_table.numel() + 1
        kv_layer = torch.zeros((2, blocks, page, heads[1], 128), dtype=dtype, device=device)
        qkv = torch.randn(length, heads[0] + 2 * heads[1], 128, device=device).to(dtype)
        plan = backend.plan(metadata)
        seconds = bench.seconds(lambda: plan.attend(kv_layer, qkv, rotary))  # noqa: B023
        products = 4 * heads[0] * 128 * (length * before + length * length / 2)
        told[f"prefill {length} behind {before}"] = {
            "ms": 1e3 * seconds,
            "tflops": products / seconds / 1e12,
        }
    return told
