"""The workload that every engine of the table gets, and the rows that it answers with.

Owns prompts, phases and figures. Knows no engine, and nothing but the standard library, because
each engine's script runs in that engine's own environment.

An engine is a callable: given prompts and a number of tokens it generates greedily, past any end of
sequence, and returns a stamp for every step: (seconds, tokens out so far over all prompts, how many
prompts have their first token).
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

WARM_TOKENS = 8


class Stamp(NamedTuple):
    """The state after one step."""

    seconds: float
    """Since the prompts were handed over."""
    tokens: int
    started: int
    """Prompts whose first token is out."""


Generate = Callable[[list[list[int]], int], Sequence[Stamp]]


class Options(NamedTuple):
    """The command line of every engine's script."""

    model: Path
    batches: list[int]
    prompt_len: int
    output_len: int
    prefill_len: int
    threads: int
    seed: int


def read_options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--prefill-len", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    batches = [int(number) for number in given.batch.split(",")]
    return Options(
        given.model,
        batches,
        given.prompt_len,
        given.output_len,
        given.prefill_len,
        given.threads,
        given.seed,
    )


def measure(options: Options, generate: Generate) -> None:
    """Warm up, measure each phase and print its rows, one JSON object a line."""
    prompts = Prompts(options)
    generate(prompts.draw(1, options.prompt_len), WARM_TOKENS)
    [first, *_] = generate(prompts.draw(1, options.prompt_len), 1)
    emit(kind="ttft", prompt_len=options.prompt_len, ms=round(first.seconds * 1000, 2))
    memory = pss_mb()
    for batch in options.batches:
        generate(prompts.draw(batch, options.prompt_len), WARM_TOKENS)
        stamps = generate(prompts.draw(batch, options.prompt_len), options.output_len)
        decode, whole = rates(stamps, batch)
        emit(kind="decode", batch=batch, tokens_per_s=round(decode, 2))
        emit(kind="end_to_end", batch=batch, tokens_per_s=round(whole, 2))
        memory = max(memory, pss_mb())
    if options.prefill_len:
        generate(prompts.draw(1, options.prefill_len), 1)
        [*_, last] = generate(prompts.draw(1, options.prefill_len), 1)
        rate = options.prefill_len / last.seconds
        emit(kind="prefill", length=options.prefill_len, tokens_per_s=round(rate, 2))
    emit(kind="memory", mb=round(max(memory, pss_mb()), 1))


def rates(stamps: Sequence[Stamp], batch: int) -> tuple[float, float]:
    """Tokens per second after all first tokens are out, and over the whole run."""
    begin = next(stamp for stamp in stamps if stamp.started == batch)
    end = stamps[-1]
    seconds = end.seconds - begin.seconds
    decode = (end.tokens - begin.tokens) / seconds if seconds > 0 else 0.0
    return decode, end.tokens / end.seconds


class Prompts:
    """Random token ids; no two prompts are alike, the same seed draws the same."""

    def __init__(self, options: Options) -> None:
        config = json.loads((options.model / "config.json").read_text())
        self._vocab = int(config["vocab_size"]) - 8  # the last ids may be markers
        self._random = random.Random(options.seed)

    def draw(self, count: int, length: int) -> list[list[int]]:
        return [[self._random.randrange(self._vocab) for _ in range(length)] for _ in range(count)]


class Loading:
    """Times an engine's construction: `with Loading(): engine = Engine(...)`."""

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        seconds = time.perf_counter() - self._begin
        with open("/proc/uptime") as file:
            now = float(file.read().split()[0])
        with open("/proc/self/stat") as file:
            born = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        emit(kind="load", seconds=round(seconds, 2), since_process_start_s=round(now - born, 2))


def pss_mb() -> float:
    """Proportional set size of this process and all its descendants, in MB (10^6 bytes)."""
    return sum(_pss_bytes(pid) for pid in [os.getpid(), *_descendants(os.getpid())]) / 1e6


def _descendants(pid: int) -> list[int]:
    try:
        tasks = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    children = [int(child) for text in tasks for child in text.split()]
    return children + [deeper for child in children for deeper in _descendants(child)]


def _pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024


def emit(**row: object) -> None:
    """One row of the answer."""
    print(json.dumps(row), flush=True)
