"""Drawing where the logits are, by the interpreted kernel, against the sampler's own way."""

from tests.cluster import triton_interpreter  # isort: skip

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
from cluster.worker.device_draw import DeviceDraw
from cluster.worker.sampler import Sampler, SamplingBatch

assert triton_interpreter
CPU = torch.device("cpu")
ROWS, VOCAB = 24, 704


class OneAtATime(TritonKernels):
    """Ranks are threads here, and the interpreter serves one."""

    _interpreter = threading.Lock()

    def __init__(self) -> None:
        super().__init__(CPU, torch.float32)
        self.draw_offered = self._draw

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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flat rows reach beyond what is offered, and are left to the host."""
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(3)) * peaked
    logits[7, 100] = float("nan")
    left: list[bool] = []
    draw = DeviceDraw.draw

    def note(self: DeviceDraw, *given: Any) -> Any:
        drawn = draw(self, *given)
        left.append(drawn is None)
        return drawn

    monkeypatch.setattr(DeviceDraw, "draw", note)

    def on_rank(group: TPGroup) -> list[Any]:
        share = logits.chunk(size, -1)[group.rank]
        told = []
        for kernels in (TorchKernels(CPU, torch.float32), OneAtATime()):
            sampler = Sampler(group, VOCAB, VOCAB - 10, kernels)
            told.append(sampler.sample(share.clone(), asked(1, top_p)))
        return told

    for on_host, on_device in ranks(size).run(on_rank):
        assert (
            on_device.healthy.tolist() == on_host.healthy.tolist() == [n != 7 for n in range(ROWS)]
        )
        good = on_host.healthy
        assert on_device.token_ids[good].tolist() == on_host.token_ids[good].tolist()
    assert left == [peaked < 1] * size
