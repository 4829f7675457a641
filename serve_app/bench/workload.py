"""The workload that an engine is measured with, and the rows that come of it.

Owns prompts, phases and figures. Knows no engine and nothing but the standard library, so that
other engines can be given the very same workload inside environments of their own.

An engine is a callable that generates greedily, past any end of sequence, for all prompts together,
and returns a stamp for every step.
"""

import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

WARM_TOKENS = 8
FIRST_TOKEN_ROUNDS = 3
RESERVED_IDS = 8
"""The last ids of a vocabulary may be markers; prompts do without them."""


class Stamp(NamedTuple):
    """The state after one step."""

    seconds: float
    """Since the prompts were handed over."""
    tokens: int
    """Out so far, over all prompts."""
    started: int
    """Prompts whose first token is out."""


Generate = Callable[[list[list[int]], int], Sequence[Stamp]]
"""(prompts, tokens of output for each) -> a stamp per step, the last when all tokens are out."""
Row = dict[str, Any]


class Workload(NamedTuple):
    """What is asked of an engine; lengths in tokens."""

    model: Path
    batches: tuple[int, ...] = (1, 8, 32)
    prompt_len: int = 128
    output_len: int = 128
    prefill_len: int = 2048
    """0 leaves the phase out."""
    rounds: int = 1
    seed: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.prompt_len + max(self.output_len, WARM_TOKENS), self.prefill_len + 1)


def check(workload: Workload) -> None:
    """Raises ValueError: a number that nothing can be measured with; the message names it."""
    if not workload.batches or min(workload.batches) < 1:
        raise ValueError("batch must be numbers of at least 1, such as 1,8,32")
    if workload.output_len < 2:
        raise ValueError("output-len must be at least 2: the first token is not part of the rate")
    if workload.prompt_len < 1 or workload.prefill_len < 0 or workload.rounds < 1:
        raise ValueError("prompt-len and rounds must be at least 1, prefill-len at least 0")


def measured(workload: Workload, generate: Generate) -> Iterator[Row]:
    """The rows of one engine, each as soon as it is known; medians over the rounds.

    Every shape is run once before it is timed. Memory is the largest seen between phases.
    """
    prompts = Prompts(workload)
    memory = pss_mb()
    yield _first_token(workload, generate, prompts)
    for batch in workload.batches:
        yield from _batch(workload, batch, generate, prompts)
        memory = max(memory, pss_mb())
    if workload.prefill_len:
        yield _prefill(workload, generate, prompts)
    yield {"kind": "memory", "mb": round(max(memory, pss_mb()), 1)}


def _first_token(workload: Workload, generate: Generate, prompts: "Prompts") -> Row:
    length = workload.prompt_len
    generate(prompts.draw(1, length), WARM_TOKENS)
    rounds = max(workload.rounds, FIRST_TOKEN_ROUNDS)
    waits = [generate(prompts.draw(1, length), 1)[-1].seconds for _ in range(rounds)]
    return {"kind": "ttft", "prompt_len": length, "ms": round(statistics.median(waits) * 1000, 2)}


def _batch(workload: Workload, batch: int, generate: Generate, prompts: "Prompts") -> Iterator[Row]:
    generate(prompts.draw(batch, workload.prompt_len), WARM_TOKENS)
    pairs = [
        rates(generate(prompts.draw(batch, workload.prompt_len), workload.output_len), batch)
        for _ in range(workload.rounds)
    ]
    for place, kind in enumerate(("decode", "end_to_end")):
        rate = round(statistics.median([pair[place] for pair in pairs]), 2)
        yield {"kind": kind, "batch": batch, "tokens_per_s": rate}


def _prefill(workload: Workload, generate: Generate, prompts: "Prompts") -> Row:
    length = workload.prefill_len
    generate(prompts.draw(1, length), 1)
    waits = [generate(prompts.draw(1, length), 1)[-1].seconds for _ in range(workload.rounds)]
    rate = round(length / statistics.median(waits), 2)
    return {"kind": "prefill", "length": length, "tokens_per_s": rate}


def rates(stamps: Sequence[Stamp], batch: int) -> tuple[float, float]:
    """Tokens per second from the step on that brought the last first token, and over the whole run.

    Where all first tokens come in one step, the former is batch x (output - 1) tokens in the time
    between the first and the last token.
    """
    begin = next(stamp for stamp in stamps if stamp.started == batch)
    end = stamps[-1]
    seconds = end.seconds - begin.seconds
    decode = (end.tokens - begin.tokens) / seconds if seconds > 0 else 0.0
    return decode, end.tokens / end.seconds


class Clock:
    """Makes the stamps of one run: an engine says how many tokens each prompt got in a step."""

    def __init__(self, prompts: int) -> None:
        self.out = [0] * prompts
        self.stamps: list[Stamp] = []
        self._begin = time.perf_counter()

    def add(self, prompt: int, tokens: int) -> None:
        self.out[prompt] += tokens

    def stamp(self) -> None:
        """The step is over."""
        seconds = time.perf_counter() - self._begin
        started = sum(count > 0 for count in self.out)
        if started:
            self.stamps.append(Stamp(seconds, sum(self.out), started))


class Prompts:
    """Random token ids; no two prompts are alike, and the same seed draws the same."""

    def __init__(self, workload: Workload) -> None:
        config = json.loads((workload.model / "config.json").read_bytes())
        self._vocabulary = max(1, int(config["vocab_size"]) - RESERVED_IDS)
        self._random = random.Random(workload.seed)

    def draw(self, count: int, length: int) -> list[list[int]]:
        """`count` prompts of `length` ids."""
        size = self._vocabulary
        return [[self._random.randrange(size) for _ in range(length)] for _ in range(count)]


def load_row(begin: float) -> Row:
    """How long the engine took to stand, since `begin` (perf_counter) and since process start."""
    ready = time.perf_counter()
    with open("/proc/uptime", encoding="ascii") as file:
        uptime = float(file.read().split()[0])
    with open("/proc/self/stat", encoding="ascii") as file:
        born = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return {"kind": "load", "seconds": round(ready - begin, 2), "start_s": round(uptime - born, 2)}


def pss_mb() -> float:
    """Proportional set size of this process and its descendants, in 10^6 bytes."""
    return sum(_pss_bytes(pid) for pid in _family(os.getpid())) / 1e6


def children(pid: int) -> list[int]:
    """Processes that a process started, in their order; those that are gone left out."""
    found: list[str] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += path.read_text().split()
        except OSError:
            continue
    return [int(child) for child in found]


def _family(pid: int) -> list[int]:
    """The process and all that came of it."""
    return [pid, *(member for child in children(pid) for member in _family(child))]


def _pss_bytes(pid: int) -> int:
    """0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
