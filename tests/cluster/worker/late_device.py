"""A device on the CPU that behaves like one apart: what it draws arrives late.

Draws stay where the logits are, by the device's way of drawing; a copy to the host shows nonsense
until it is waited for, and every wait is noted. Nothing else may look at what was drawn: the host's
books hold id -1 in its place, which no embedding has.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.device import Arriving
from cluster.kernels.torch_kernels import TorchKernels
from cluster.model.tp_group import TPGroup
from cluster.worker.candidates import Filters, Offer, draw_offered
from cluster.worker.noise import MAX_VOCAB
from cluster.worker.sampler import OFFERED, Sampler
from cluster.worker.worker import Worker


class LateKernels(TorchKernels):
    """Torch's, with a draw on the device."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), torch.float32, "late")
        self.draw_offered = _draw_offered


def make_late(worker: Worker, group: TPGroup, events: list[str]) -> None:
    """Let a worker's device be such a one; `events` gets "wait" for each wait."""

    class Late(Arriving):
        def __init__(self, tensor: Tensor) -> None:
            self._real = tensor.clone()
            super().__init__(
                torch.full_like(tensor, -(2**40) if tensor.dtype is not torch.bool else 0)
            )
            self.late = True

        def numpy(self) -> Any:
            events.append("wait")
            return self._real.numpy()

    assert worker._runner is not None
    facts = worker.facts
    worker._runner._sampler = Sampler(
        group, facts.vocab_size, facts.num_real_tokens, LateKernels(), Late
    )


def _draw_offered(
    offer: tuple[Tensor, Tensor, Tensor],
    lse: Tensor,
    filters: tuple[Tensor, Tensor, Tensor, Tensor],
    unlimited: int,
) -> tuple[Tensor, Tensor]:
    assert unlimited == MAX_VOCAB
    values, ids, floor = (part.numpy() for part in offer)
    top_p, min_p_log, top_k, keys = (part.numpy()[:, np.newaxis] for part in filters)
    tokens, covered = draw_offered(
        Offer(values, ids, floor[:, np.newaxis]),
        lse.numpy()[:, np.newaxis],
        Filters(top_p, min_p_log, top_k, keys.view(np.uint64)),
        OFFERED,
    )
    return torch.from_numpy(tokens), torch.from_numpy(covered)
