"""Steps on a device without numbers: torch's meta, where asking for a value is an error.

So what passes here never waits for the device between a frame and the end of its draw.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cluster.batch import ScheduledRow, SchedulerOutput, StartedRow
from cluster.device import Arriving
from cluster.kernels.torch_kernels import TorchKernels
from cluster.model.tp_group import TPGroup
from cluster.request import SamplingParams
from cluster.worker.allowed import Allowed
from cluster.worker.input_batch import InputBatch, StepInputs
from cluster.worker.sampler import Sampler

APART = torch.device("meta")
VOCAB = 704
ASKED = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.6, top_p=0.95),
    SamplingParams(temperature=0.8, top_k=20, presence_penalty=0.5, logit_bias={7: 2.0}),
    SamplingParams(temperature=0.0, repetition_penalty=1.2, min_tokens=4),
]


class KernelsApart(TorchKernels):
    """With the draw of a GPU's kernels, as far as shapes go."""

    def __init__(self) -> None:
        super().__init__(APART, torch.float32)
        self.draw_offered = _drawn


def _drawn(offer: Any, lse: Tensor, filters: Any, unlimited: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(lse, dtype=torch.int64), torch.empty_like(lse, dtype=torch.bool)


class Fetched(Arriving):
    """Never arrives."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape = tensor.shape

    def numpy(self) -> Any:
        raise AssertionError("the host waits")


@pytest.fixture(autouse=True)
def without_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a torch without accelerators does not have."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)


def prepared() -> tuple[InputBatch, StepInputs]:
    """A decode of all rows, the first of whose tokens are still being drawn."""
    batch = InputBatch(8, 64, 16, (3,), APART)
    rows = [StartedRow(n, [5, 6 + n], 2, [n + 1], params) for n, params in enumerate(ASKED)]
    batch.apply(SchedulerOutput(1, [], rows, [], []))
    first = batch.prepare([ScheduledRow(n, 0, 2, True) for n in range(len(ASKED))])
    batch.expect(first.sample_rows)
    return batch, batch.prepare([ScheduledRow(n, 2, 1, True) for n in range(len(ASKED))])


def test_inputs_and_awaited_tokens_reach_the_device_unasked() -> None:
    _, inputs = prepared()
    assert inputs.awaited is not None
    assert inputs.awaited.device == inputs.token_ids.device == APART
    assert inputs.metadata.block_table.shape == (len(ASKED), 1)


@pytest.mark.parametrize("kind", ["greedy", "filters", "mixed", "forced", "grammar"])
def test_draws_ask_the_device_for_nothing(kind: str) -> None:
    batch, inputs = prepared()
    settings = batch.sampling(inputs)
    allowed = None
    if kind == "greedy":
        settings = dataclasses.replace(settings, temperature=np.zeros(4, np.float32), edits=None)
    elif kind == "filters":
        settings = dataclasses.replace(
            settings, temperature=np.ones(4, np.float32), top_k=np.full(4, 9), edits=None
        )
    elif kind == "forced":
        settings = dataclasses.replace(settings, forced_ids=np.array([-1, 5, -1, 6]))
    elif kind == "grammar":
        allowed = Allowed(np.array([1, 3]), np.full((2, VOCAB // 8), 129, np.uint8))
    sampler = Sampler(TPGroup(), VOCAB, VOCAB - 4, KernelsApart(), Fetched)
    draw = sampler.begin(torch.empty(4, VOCAB, device=APART), settings, allowed)
    assert draw.late
    tokens = draw.on(APART)
    assert (tokens.shape, tokens.dtype, tokens.device) == ((4,), torch.int64, APART)


def test_a_copy_to_the_host_is_begun_at_once_and_waited_for_when_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    class Event:
        def record(self) -> None:
            events.append("record")

        def synchronize(self) -> None:
            events.append("wait")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    with FakeTensorMode():
        copy = Arriving(torch.empty(3, 5, device="cuda"))
        assert copy.late
        assert events == ["record"]
        with pytest.raises(RuntimeError):
            copy.numpy()  # a fake has no numbers
    assert events == ["record", "wait"]
