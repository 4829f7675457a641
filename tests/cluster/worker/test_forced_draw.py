"""A forced id is taken where it is asked for, whoever draws the others."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cluster.config import EngineConfig
from cluster.device import Device
from cluster.kernels.selection import select_kernels
from cluster.model.tp_group import TPGroup
from cluster.worker.sampler import Sampler, SamplingBatch

VOCAB = 64
FORCED = np.array([-1, 40, -1, 0, 63, -1])


def batch(temperature: list[float], logprobs: int | None = None) -> SamplingBatch:
    count, none = len(temperature), np.zeros(0, np.int64)
    return SamplingBatch(
        temperature=np.array(temperature, np.float32),
        top_p=np.full(count, 0.9, np.float32),
        min_p=np.zeros(count, np.float32),
        top_k=np.zeros(count, np.int64),
        seed=np.full(count, 3),
        position=np.arange(count),
        banned_rows=none,
        banned_ids=none,
        num_logprobs=None if logprobs is None else np.full(count, logprobs),
        forced_ids=FORCED,
    )


def logits() -> torch.Tensor:
    return torch.randn(len(FORCED), VOCAB, generator=torch.Generator().manual_seed(2))


def free_and_forced(sampler: Sampler, asked: SamplingBatch) -> tuple[list[int], list[int]]:
    forced = sampler.sample(logits(), asked).token_ids.tolist()
    asked = SamplingBatch(**{**asked.__dict__, "forced_ids": None})
    return sampler.sample(logits(), asked).token_ids.tolist(), forced


@pytest.mark.parametrize("temperatures", [[0.0] * 6, [1.0] * 6, [0.0, 0.0, 1.0, 1.0, 0.7, 0.0]])
@pytest.mark.parametrize("compiled", [False, True])
def test_forced_ids_are_taken_and_the_others_drawn_as_ever(
    temperatures: list[float], compiled: bool
) -> None:
    config = EngineConfig(model_path="-", device="cpu")
    kernels = select_kernels(Device.select("cpu", 0), torch.float32, config) if compiled else None
    sampler = Sampler(TPGroup(), VOCAB, VOCAB, kernels)
    free, forced = free_and_forced(sampler, batch(temperatures))
    assert forced == np.where(FORCED >= 0, FORCED, free).tolist()
    assert forced != free


def test_logprobs_are_those_of_the_forced_ids() -> None:
    drawn = Sampler(TPGroup(), VOCAB, VOCAB).sample(logits(), batch([1.0] * 6, logprobs=1))
    assert drawn.logprobs is not None
    for row, told in enumerate(drawn.logprobs):
        assert told is not None
        want = logits()[row].log_softmax(-1)[int(drawn.token_ids[row])]
        assert told.logprob == pytest.approx(float(want), abs=1e-5)


def test_ranks_take_the_same_forced_ids(ranks: Callable[[int], Any]) -> None:
    def draw(group: TPGroup) -> list[int]:
        mine = logits().chunk(group.size, -1)[group.rank].clone()
        asked = batch([0.0, 0.0, 1.0, 1.0, 0.7, 0.0])
        drawn: list[int] = Sampler(group, VOCAB, VOCAB).sample(mine, asked).token_ids.tolist()
        return drawn

    one, other = ranks(2).run(draw)
    assert one == other
    assert [token for token, asked in zip(one, FORCED, strict=True) if asked >= 0] == [40, 0, 63]
