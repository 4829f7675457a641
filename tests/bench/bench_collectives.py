"""Latency of one all-reduce between two ranks, shared memory beside gloo.

`python tests/bench/bench_collectives.py [--ranks 2] [--rounds 3]`

Every rank is pinned to a core of its own where there are enough. The contestants take turns; per
size the least, the median and the 99th percentile of all calls are printed, in microseconds.
"""

import argparse
import multiprocessing
import tempfile
import time
from typing import Any, Literal

import torch

from cluster.cores import pin_rank
from cluster.model.tp_group import TPGroup

SIZES = {"3.5 KB": 1_792, "20 KB": 10_240, "160 KB": 81_920, "640 KB": 327_680}
"""Elements of bfloat16."""
CALLS = 300


def measure(rank: int, ranks: int, where: str, backend: Literal["shm", "gloo"], told: Any) -> None:
    """One rank: `CALLS` sums of each size; rank 0 tells how long they took."""
    torch.set_num_threads(1)
    group = TPGroup.join(rank, ranks, where, backend)
    pin_rank(rank, ranks, 1, True)
    taken: dict[str, list[float]] = {}
    for name, elements in SIZES.items():
        x = torch.zeros(elements, dtype=torch.bfloat16)
        seconds = []
        for _ in range(CALLS):
            start = time.perf_counter()
            group.all_reduce(x)
            seconds.append(time.perf_counter() - start)
        taken[name] = seconds[10:]
    if rank == 0:
        told.put(taken)
    group.close()


def run(ranks: int, backend: str) -> dict[str, list[float]]:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        where = f"file://{folder}/meeting"
        arguments = [(rank, ranks, where, backend, told) for rank in range(ranks)]
        processes = [context.Process(target=measure, args=a, daemon=True) for a in arguments]
        for process in processes:
            process.start()
        taken: dict[str, list[float]] = told.get(timeout=120)
        for process in processes:
            process.join(30)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    taken: dict[str, dict[str, list[float]]] = {"shm": {}, "gloo": {}}
    for _ in range(options.rounds):
        for backend, sizes in taken.items():
            for name, seconds in run(options.ranks, backend).items():
                sizes.setdefault(name, []).extend(seconds)
    print(f"{'all-reduce, us':>16} {'min':>9} {'median':>9} {'p99':>9}")
    for backend, sizes in taken.items():
        for name, seconds in sizes.items():
            us = sorted(second * 1e6 for second in seconds)
            row = [us[0], us[len(us) // 2], us[int(len(us) * 0.99)]]
            print(f"{backend:>6} {name:>9} " + " ".join(f"{value:9.1f}" for value in row))


if __name__ == "__main__":
    main()
