"""What every engine's script here has in common: its options, and its rows on standard output.

A script runs in the environment of its engine, with this repository on PYTHONPATH; of it, it may
import `serve_app.bench.workload` and nothing else.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from serve_app.bench.workload import Generate, Row, Workload, load_row, measured

Start = Callable[[Path, int, Workload], Generate]
"""(model as this engine reads it, threads, workload to size caches for) -> a standing engine."""


def answer(start: Start) -> None:
    """Start the engine as the command line says, and print the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--prefill-len", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    workload = Workload(
        given.model,
        tuple(int(number) for number in given.batch.split(",")),
        given.prompt_len,
        given.output_len,
        given.prefill_len,
        given.rounds,
        given.seed,
    )
    begin = time.perf_counter()
    generate = start(given.model, given.threads, workload)
    emit(load_row(begin))
    for row in measured(workload, generate):
        emit(row)


def emit(row: Row) -> None:
    print(json.dumps(row), flush=True)
