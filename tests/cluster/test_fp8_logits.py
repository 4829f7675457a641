"""What fp8 weights and an fp8 cache do to the logits of the demo model, on texts that it knows.

e4m3 keeps three bits: a product moves by some 4 % (`kernels/test_fp8.py`). What counts is how far
that moves a token against the others, so it is held against how far logits are apart.
"""

import json
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from cluster.kernels.kernels import Quantization
from cluster.model.tp_group import TPGroup
from tests.bench.bench_quantization import DEMO, logits, settings


class Text(NamedTuple):
    ids: Tensor
    prompt: int


@cache
def texts() -> list[Text]:
    """One text of every kind of task."""
    with (DEMO / "golden.jsonl").open() as lines:
        golden = {task["kind"]: task for task in map(json.loads, lines)}
    return [
        Text(torch.tensor(task["prompt_ids"] + task["expected_ids"]), len(task["prompt_ids"]))
        for task in golden.values()
    ]


def answered(text: Text, kind: Quantization, group: TPGroup | None = None) -> Tensor:
    """The logits from which the answer's tokens were drawn."""
    return logits(settings(DEMO, kind), text.ids, group)[text.prompt - 1 : -1]


@pytest.mark.parametrize("size", [1, 2])
def test_a_cache_of_e4m3_moves_logits_by_one_per_cent_of_their_range(
    size: int, ranks: Callable[[int], Any]
) -> None:
    together = ranks(size)
    rounded = settings(DEMO, "none", "fp8")
    for text in texts():
        want = answered(text, "none")
        parts = together.run(lambda group, text=text: logits(rounded, text.ids, group))
        got = torch.cat(parts, -1)[text.prompt - 1 : -1]
        apart = want.amax(-1) - want.amin(-1)
        error = (got - want).square().mean(-1).sqrt()
        assert (error / apart).mean() < 0.01
        assert (error / apart).max() < 0.04
        assert torch.equal(got.argmax(-1), want.argmax(-1))


@pytest.mark.parametrize("size", [1, 2])
def test_logits_are_within_two_per_cent_of_those_in_bfloat16(
    size: int, ranks: Callable[[int], Any]
) -> None:
    together = ranks(size)
    for text in texts():
        want = answered(text, "none")
        parts = together.run(lambda group, text=text: answered(text, "fp8", group))
        got = torch.cat(parts, -1)
        apart = want.amax(-1) - want.amin(-1)
        error = (got - want).square().mean(-1).sqrt()
        assert (error / apart).mean() < 0.01
        # The worst of 300 positions moves with the kernels that a machine chose for bfloat16.
        assert (error / apart).max() < 0.03
        drawn = want.argmax(-1)
        assert torch.equal(got.argmax(-1), drawn)
        moved = (got - want).gather(1, drawn.unsqueeze(1)).squeeze(1).abs() / want.amax(-1).abs()
        assert moved.mean() < 0.02
