"""What penalties cost a step: the counts of every row, and the changed logits of a vocabulary.

Prints milliseconds per step at the vocabulary of DeepSeek R1 32B on one rank and one thread. Run
with `make bench`, or alone:

    python -m tests.bench.bench_penalties
"""

import time
from typing import NamedTuple

import numpy as np
import pytest
import torch

from cluster.batch import StartedRow
from cluster.request import SamplingParams
from cluster.worker.row_edits import RowEdits

VOCAB, PROMPT, STEPS = 152_064, 1000, 30
CASES = [(1, 500), (1, 8000), (32, 2000), (32, 8000)]


class Cost(NamedTuple):
    """Milliseconds of a step, the fastest of some, and what it changes."""

    counting: float
    changing: float
    distinct: float
    """Ids that a row has seen."""


@pytest.mark.parametrize(("rows", "said"), CASES)
def test_the_cost_of_penalties(rows: int, said: int) -> None:
    print(f"\n{line(rows, said)}")
    assert step_cost(rows, said).distinct > 0


def step_cost(rows: int, said: int) -> Cost:
    """Every row has said `said` tokens, spread as words are, and is penalised in all three ways."""
    source, edits = np.random.default_rng(0), RowEdits()
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.5, repetition_penalty=1.1)
    for row in range(rows):
        tokens = np.minimum(source.zipf(1.3, PROMPT + said), VOCAB - 1).tolist()
        edits.start(StartedRow(row, tokens, PROMPT, [], params))
    logits = torch.randn(rows, VOCAB)
    numbers = list(range(rows))
    no_drafts: list[list[int]] = [[]] * rows
    counting, changing, changed = [], [], 0
    for _ in range(STEPS):
        begin = time.perf_counter()
        made = edits.edits(numbers, no_drafts)
        middle = time.perf_counter()
        assert made is not None
        made.apply(logits, 0)
        changing.append(time.perf_counter() - middle)
        edits.record(numbers, [[5]] * rows)
        counting.append(middle - begin)
        changed = len(made.lowered.ids)
    return Cost(min(counting) * 1000, min(changing) * 1000, changed / rows)


def line(rows: int, said: int) -> str:
    cost = step_cost(rows, said)
    return (
        f"{rows:3d} rows of {said} tokens ({cost.distinct:.0f} distinct): "
        f"counts {cost.counting:.2f} ms, logits {cost.changing:.2f} ms"
    )


def main() -> None:
    torch.set_num_threads(1)
    for rows, said in CASES:
        print(line(rows, said))


if __name__ == "__main__":
    main()
