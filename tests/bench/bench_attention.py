"""Paged attention, compiled and plain torch, side by side: GB/s of decode, GFLOP/s of prefill.

    python tests/bench/bench_attention.py [--threads 2] [--heads 12 --kv-heads 4 --head-dim 64]

Layers rotate, so that keys and values come from memory as they do in a model. Bytes are those of
the visible keys and values; operations are those of the visible triangle alone.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.attention.backend import (
    AttentionBackend,
    AttentionMetadata,
    RotaryTable,
    allocate_kv_layer,
)
from cluster.attention.cpu import TorchAttention
from cluster.attention.native import NativeAttention
from cluster.kernels import native

BLOCK_SIZE = 16
DECODES = [(1, 192), (8, 192), (32, 192), (64, 192), (1, 2048), (8, 2048), (32, 2048), (1, 16384)]
PREFILLS = [(0, 128), (0, 2048), (8192, 512)]
"""(cached tokens, queries)"""
CACHE_BYTES = 96 << 20
"""Layers rotate through at least so much, or LAYERS of them."""
LAYERS = 12


class Shape(NamedTuple):
    heads: int
    kv_heads: int
    head_dim: int


def step(requests: list[tuple[int, int]]) -> tuple[AttentionMetadata, int]:
    """Requests as (cached, queries) -> the step and the number of blocks it needs."""
    pages = [-(-(before + now) // BLOCK_SIZE) for before, now in requests]
    order = (torch.randperm(sum(pages)) + 1).int()
    table = torch.zeros((len(requests), max(pages)), dtype=torch.int32)
    for row, part in enumerate(torch.split(order, pages)):
        table[row, : len(part)] = part
    positions = torch.cat([torch.arange(before, before + now) for before, now in requests])
    rows = torch.repeat_interleave(torch.tensor([now for _, now in requests]))
    slots = table[rows, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, *(now for _, now in requests)]).cumsum(0).int(),
        seq_lens_k=torch.tensor([before + now for before, now in requests]).int(),
        block_table=table,
        positions=positions,
        slot_mapping=slots,
        max_q=max(now for _, now in requests),
        max_k=max(before + now for before, now in requests),
        num_decode=sum(now == 1 for _, now in requests),
    )
    return metadata, sum(pages) + 1


def seconds(run: Callable[[int], object], rounds: int) -> float:
    """The median of a call's time."""
    run(0)
    times = []
    for number in range(rounds):
        start = time.perf_counter()
        run(number)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def measure(
    backend: AttentionBackend, requests: list[tuple[int, int]], shape: Shape, rounds: int
) -> float:
    """Seconds of one layer's call: turn, store, attend."""
    metadata, blocks = step(requests)
    kv_bytes = blocks * BLOCK_SIZE * shape.kv_heads * shape.head_dim * 4
    count = max(1, min(LAYERS, CACHE_BYTES // kv_bytes + 1))
    layers = [
        allocate_kv_layer(
            blocks,
            BLOCK_SIZE,
            shape.kv_heads,
            shape.head_dim,
            torch.bfloat16,
            torch.device("cpu"),
        ).normal_()
        for _ in range(count)
    ]
    tokens = len(metadata.positions)
    qkv = torch.randn(tokens, shape.heads + 2 * shape.kv_heads, shape.head_dim).bfloat16()
    angles = torch.rand(metadata.max_k, shape.head_dim // 2)
    rotary = RotaryTable(angles.cos(), angles.sin())
    plan = backend.plan(metadata)

    def call(number: int) -> Tensor:
        return plan.attend(layers[number % count], qkv.clone(), rotary)

    return seconds(call, rounds)


def rows(shape: Shape) -> list[tuple[str, list[tuple[int, int]], float, str]]:
    """(label, requests, bytes or operations, unit)"""
    table = []
    for batch, context in DECODES:
        traffic = batch * context * shape.kv_heads * shape.head_dim * 4 / 1e9
        table.append((f"decode {batch} x {context}", [(context - 1, 1)] * batch, traffic, "GB/s"))
    for cached, queries in PREFILLS:
        seen = queries * cached + queries * (queries + 1) / 2
        work = 4 * seen * shape.heads * shape.head_dim / 1e9
        table.append((f"prefill {queries} after {cached}", [(cached, queries)], work, "GFLOP/s"))
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = Shape(args.heads, args.kv_heads, args.head_dim)
    plain = TorchAttention(BLOCK_SIZE, shape.kv_heads * shape.head_dim, torch.bfloat16)
    backends: dict[str, AttentionBackend] = {"torch": plain}
    extension, reason = native.load()
    if extension is None:
        print(f"the compiled kernels are {reason}")
    else:
        for variant, name in enumerate(extension.attention_variants()):
            backends[name] = NativeAttention(extension, BLOCK_SIZE, variant)
    print(f"{shape}, {args.threads} threads; microseconds of one layer's call, and its rate")
    for label, requests, amount, unit in rows(shape):
        rounds = 9 if unit == "GFLOP/s" else 25
        cells = []
        for name, backend in backends.items():
            taken = measure(backend, requests, shape, rounds)
            cells.append(f"{name} {taken * 1e6:9.1f} us {amount / taken:6.1f} {unit}")
        print(f"{label:24}" + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
