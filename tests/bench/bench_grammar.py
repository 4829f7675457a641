"""What grammars cost: compiling, the first mask, further masks, and sampling under them.

    python -m tests.bench.bench_grammar [--model configs/models/deeprequest-demo]

For every bomb of the tests and a few usual schemas: milliseconds to compile, the longest and the
mean mask along random answers, or why the schema is refused. Then the sampler's part: logits of the
model's vocabulary with and without a mask per row.
"""

import argparse
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.text.grammar import GrammarCompiler, GrammarError, Matcher
from cluster.text.json_grammar import ANY_OBJECT, json_answer
from cluster.text.tokenizer import Tokenizer
from cluster.text.trial_process import some_id
from cluster.worker.allowed import Allowed, forbid_others
from tests.cluster.text.grammar_bombs import BOMBS
from tests.e2e.conformance.structured_schemas import SCHEMAS

MODEL = Path(__file__).resolve().parents[2] / "configs" / "models" / "deeprequest-demo"
ANSWERS, IDS = 5, 60
REAL_VOCAB = 152_064


def masks(begun: Matcher) -> list[float]:
    """Seconds of every mask along random answers."""
    seconds = []
    for seed in range(ANSWERS):
        matcher, chance = begun.copy(), random.Random(seed)
        for _ in range(IDS):
            if matcher.ended:
                break
            start = time.perf_counter()
            mask = matcher.mask()
            seconds.append(time.perf_counter() - start)
            matcher.push(some_id(mask, chance))
    return seconds


def line(compiler: GrammarCompiler, name: str, schema: dict[str, Any]) -> str:
    start = time.perf_counter()
    try:
        begun = compiler.matcher(json_answer(schema))
        compiled = time.perf_counter() - start
        took = masks(begun)
    except GrammarError as error:
        spent = (time.perf_counter() - start) * 1e3
        return f"{name:34} {spent:9.1f} refused: {str(error).splitlines()[0][:70]}"
    longest, mean = max(took) * 1e3, sum(took) / len(took) * 1e3
    return f"{name:34} {compiled * 1e3:9.1f} {longest:9.2f} {mean:9.3f}"


def forbidding(rows: int, vocab: int) -> float:
    """Seconds to forbid all but some ids in this many rows."""
    torch.set_num_threads(1)
    logits = torch.randn(rows, vocab)
    some = np.random.default_rng(1).random((rows, vocab)) < 0.98  # as within a string
    allowed = Allowed(np.arange(rows), np.packbits(some, axis=1, bitorder="little"))
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        forbid_others(logits, allowed, 0)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    tokenizer = Tokenizer(parser.parse_args().model)
    start = time.perf_counter()
    compiler = GrammarCompiler(tokenizer)
    print(f"vocabulary of {tokenizer.size}: {time.perf_counter() - start:.2f} s")
    print(f"{'schema':34} {'compile':>9} {'longest':>9} {'mean mask':>9}   ms")
    for name, schema in {"any object": dict(ANY_OBJECT), **SCHEMAS, **BOMBS}.items():
        print(line(compiler, name, schema))
    for rows in (1, 8, 64):
        took = forbidding(rows, REAL_VOCAB) * 1e6
        print(f"masks put on {rows} rows of {REAL_VOCAB} logits: {took:.0f} µs")


if __name__ == "__main__":
    main()
