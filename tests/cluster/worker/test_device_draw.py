"""Drawing where the logits are, by the interpreted kernel, against the sampler's own way."""

from tests.cluster import triton_interpreter  # isort: skip

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cluster.kernels.torch_kernels import TorchKernels
from cluster.kernels.triton_draw import draw_offered
from cluster.kernels.triton_kernels import TritonKernels
from cluster.model.tp_group import TPGroup
from cluster.worker.sampler import WARY_STEPS, Sampler, SamplingBatch

assert triton_interpreter
CPU = torch.device("cpu")
ROWS, VOCAB = 24, 704
NO_IDS = np.empty(0, np.int64)


class OneAtATime(TritonKernels):
    """Ranks are threads here, and the interpreter serves one."""

    _interpreter = threading.Lock()

    def __init__(self) -> None:
        super().__init__(CPU, torch.float32)
        self.draw_offered = self._draw

    def row_argmax(self, logits: torch.Tensor, limit: int) -> Any:
        with self._interpreter:
            return super().row_argmax(logits, limit)

    def _draw(self, *given: Any) -> Any:
        with self._interpreter:
            return draw_offered(*given)


def asked(seed: int, top_p: float) -> SamplingBatch:
    chosen = np.random.default_rng(seed)
    return SamplingBatch(
        temperature=chosen.choice(np.array([0.3, 0.6, 1.0], np.float32), ROWS),
        top_p=np.full(ROWS, top_p, np.float32),
        min_p=chosen.choice(np.array([0.0, 0.1], np.float32), ROWS),
        top_k=chosen.choice(np.array([0, 1, 20, 60]), ROWS),
        seed=chosen.integers(0, 2**40, ROWS),
        position=chosen.integers(0, 4096, ROWS),
        banned_rows=np.array([0, 5]),
        banned_ids=np.array([3, 650]),
    )


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(("peaked", "top_p"), [(8.0, 0.9), (0.2, 0.99)])
def test_the_device_draws_what_the_host_draws(
    size: int,
    peaked: float,
    top_p: float,
    ranks: Callable[[int], Any],
) -> None:
    """Flat rows reach beyond what is offered, and are left to the host."""
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(3)) * peaked
    logits[7, 100] = float("nan")
    question = asked(1, top_p)

    def on_rank(group: TPGroup) -> list[Any]:
        share = logits.chunk(size, -1)[group.rank]
        host = Sampler(group, VOCAB, VOCAB - 10, TorchKernels(CPU, torch.float32))
        draw = Sampler(group, VOCAB, VOCAB - 10, OneAtATime()).begin(share.clone(), question)
        assert draw.late
        now = draw.on(CPU)
        after = draw.result()
        return [host.sample(share.clone(), question), after, now, draw.on(CPU), draw.redrawn]

    for on_host, on_device, now, later, redrawn in ranks(size).run(on_rank):
        assert on_host.healthy.tolist() == [n != 7 for n in range(ROWS)]
        assert on_device.healthy.tolist() == on_host.healthy.tolist()
        good = on_host.healthy
        assert on_device.token_ids[good].tolist() == on_host.token_ids[good].tolist()
        assert redrawn == (peaked < 1)
        for ids in (later, now) if not redrawn else (later,):
            assert ids[torch.from_numpy(good)].tolist() == on_host.token_ids[good].tolist()


@pytest.mark.parametrize("size", [1, 2])
def test_greedy_and_forced_rows_are_drawn_beside_the_others(
    size: int, ranks: Callable[[int], Any]
) -> None:
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(5)) * 8
    logits[2, 600] = logits[2, 30] = 99.0  # of equals the lowest id
    logits[3, 8] = float("inf")
    mixed = asked(2, 0.9)
    mixed.temperature[2:12] = 0
    forced = np.full(ROWS, -1)
    forced[[4, 15]] = 77
    greedy = dataclasses.replace(
        mixed, temperature=np.zeros(ROWS, np.float32), banned_rows=NO_IDS, banned_ids=NO_IDS
    )
    questions = [mixed, dataclasses.replace(mixed, forced_ids=forced), greedy]

    def on_rank(group: TPGroup) -> list[Any]:
        share = logits.chunk(size, -1)[group.rank]
        host = Sampler(group, VOCAB, VOCAB - 10, TorchKernels(CPU, torch.float32))
        device = Sampler(group, VOCAB, VOCAB - 10, OneAtATime())
        told = []
        for question in questions:
            draw = device.begin(share.clone(), question)
            told.append((host.sample(share.clone(), question), draw.on(CPU), draw.result()))
        return told

    for told in ranks(size).run(on_rank):
        for on_host, now, later in told:
            good = on_host.healthy
            assert good.tolist() == later.healthy.tolist() == [n != 3 for n in range(ROWS)]
            expected = np.where(good, on_host.token_ids, 0).tolist()
            assert now.tolist() == later.token_ids.tolist() == expected
        assert told[0][1][2] == 30
        assert told[1][1][[4, 15]].tolist() == [77, 77]


def test_after_a_draw_that_did_not_suffice_the_next_ones_are_waited_for() -> None:
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(3))
    flat, peaked = logits * 0.2, logits * 8
    sampler = Sampler(TPGroup(), VOCAB, VOCAB, OneAtATime())
    first = sampler.begin(flat.clone(), asked(1, 0.99))
    assert first.late
    first.result()
    waited = [not sampler.begin(peaked.clone(), asked(1, 0.9)).late for _ in range(WARY_STEPS + 1)]
    assert waited == [True] * WARY_STEPS + [False]
