"""What each rank's process took at most, beside what the plan says of it.

Owns the look at the processes and the arithmetic of the row; bytes are the plan's. Knows no
workload and loads no torch, which would itself be measured.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from cluster.config import EngineConfig
from cluster.model.model_config import read_model_config
from cluster.plan.devices import CPU
from cluster.worker.sizing import plan_rank
from serve_app.bench.workload import Row, children


def rank_memory(config: EngineConfig) -> Iterator[Row]:
    """A row a rank on a CPU, while the engine stands.

    One rank is this process itself; several are its children, in their order.
    """
    if config.device == "cuda":
        return
    planned = planned_bytes(config)
    ranks = [os.getpid()] if config.tensor_parallel_size == 1 else children(os.getpid())
    for rank, pid in enumerate(ranks):
        peak = peak_bytes(pid)
        yield {
            "kind": "rank_memory",
            "rank": rank,
            "mb": round(peak / 1e6, 1),
            "planned_mb": round(planned / 1e6, 1),
            "of_plan": round(peak / planned, 3),
        }


def planned_bytes(config: EngineConfig) -> int:
    """Of a rank on a CPU whose KV cache has a given number of blocks; one alone, in this process,
    knows no words."""
    number_bytes = 2 if config.dtype == "bfloat16" else 4
    model, alone = read_model_config(Path(config.model_path)), config.tensor_parallel_size == 1
    plan = plan_rank(config, model, CPU, number_bytes, knows_words=not alone)
    blocks = config.num_kv_blocks or 0
    return plan.taken_bytes(blocks * config.block_size * plan.token_bytes)


def peak_bytes(pid: int) -> int:
    """The most of a process that was ever resident, without the pages of program files: how many
    of those are mapped is the page cache's doing, and the kernel can drop them."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    told = dict(line.split(":", 1) for line in lines)
    return (int(told["VmHWM"].split()[0]) - int(told["RssFile"].split()[0])) * 1024
