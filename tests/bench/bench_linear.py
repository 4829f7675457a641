"""Speed of the compiled linears beside torch's, in one run: weights from memory, warm activations.

`python -m tests.bench.bench_linear [--threads 2] [--m 1,8] [--shape 768x1280] [--rounds 5]`

Each measurement walks over copies of one weight that together exceed every cache, as the layers of
a model do. Prints per shape and number of rows GB/s of weights read and GFLOP/s, best of the rounds
that take turns between the contestants, and what the machine reads per second from memory.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.kernels.native import load

native, _MISSING = load()
SHAPES = [
    (768, 1280),
    (768, 768),
    (768, 4096),
    (2048, 768),
    (768, 32768),
    (1536, 17920),
    (8960, 1536),
]
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 512, 2048]
WORKING_SET = 200 << 20
"""Bytes of weights walked over: more than the last cache holds."""


@dataclass(frozen=True)
class Contestant:
    name: str
    product: Callable[[Tensor, int], Tensor]
    """(x, number of the weight's copy) -> x W^T."""


def contestants(k: int, n: int, copies: int) -> list[Contestant]:
    weights = [torch.randn(n, k).to(torch.bfloat16) for _ in range(copies)]
    packed = [native.pack_linear(weight) for weight in weights]
    wide = [weight.float() for weight in weights[: max(1, copies // 2)]]

    def compiled(variant: int) -> Callable[[Tensor, int], Tensor]:
        return lambda x, copy: native.linear(x, packed[copy], n, None, torch.bfloat16, variant)

    ours = [Contestant(name, compiled(i)) for i, name in enumerate(native.linear_variants())]
    return [
        *ours,
        Contestant("torch bf16", lambda x, copy: F.linear(x, weights[copy])),
        Contestant("torch fp32", lambda x, copy: F.linear(x.float(), wide[copy % len(wide)])),
    ]


def seconds(contestant: Contestant, x: Tensor, copies: int, budget: float) -> float:
    """Seconds of one product, averaged over the copies; `budget`: seconds to spend."""
    contestant.product(x, 0)
    calls, start = 0, time.perf_counter()
    while True:
        for copy in range(copies):
            contestant.product(x, copy)
        calls += copies
        spent = time.perf_counter() - start
        if spent > budget:
            return spent / calls


def read_bandwidth() -> float:
    """Bytes a second that all threads read, summing 1 GiB as integers."""
    memory = native.huge_empty(1 << 30).view(torch.int64)
    memory.fill_(1)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        memory.sum()
        best = max(best, memory.nbytes / (time.perf_counter() - start))
    return best


def measure(k: int, n: int, rows: list[int], rounds: int) -> None:
    copies = max(2, min(128, WORKING_SET // (2 * n * k)))
    field = contestants(k, n, copies)
    print(f"\n{k} -> {n}, {copies} copies" + "".join(f"{c.name:>22s}" for c in field))
    for m in rows:
        x = torch.randn(m, k).to(torch.bfloat16)
        few = copies if m <= 32 else min(copies, 2)
        best = [float("inf")] * len(field)
        for _ in range(rounds):
            for i, contestant in enumerate(field):
                best[i] = min(best[i], seconds(contestant, x, few, 0.03))
        cells = [f"{2 * n * k / t / 1e9:7.1f} GB/s {2 * m * n * k / t / 1e9:6.0f} GF" for t in best]
        print(f"  M {m:5d}              " + "".join(f"{cell:>22s}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--m", default=",".join(map(str, ROWS)))
    parser.add_argument("--shape", action="append", help="KxN")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if native is None:
        parser.exit(1, f"compiled kernels: {_MISSING}\n")
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, memory read {read_bandwidth() / 1e9:.1f} GB/s")
    rows = [int(m) for m in arguments.m.split(",")]
    shapes = [tuple(map(int, s.split("x"))) for s in arguments.shape or []] or SHAPES
    for k, n in shapes:
        measure(k, n, rows, arguments.rounds)


if __name__ == "__main__":
    main()
