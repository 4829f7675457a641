"""What was drawn, for the two who need it: the host, and the device's next step.

    now     the ids are on the host; the device is sent them
    later   the ids are on the device and on their way to the host; the next step takes them there

Owns the difference. A draw on the device may turn out not to have sufficed for a row (its kept set
reaches beyond what was offered): the host then draws once more, and whoever took the ids on the
device took the wrong ones. Knows no logits.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.device import Arriving, sent
from cluster.request import TokenLogprobs

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Drawn(NamedTuple):
    """What was drawn at S positions, on the host."""

    token_ids: Ints
    """[S]"""
    healthy: Bools
    """[S]: the logits were finite and some id was left; where not, the id means nothing."""
    logprobs: list[TokenLogprobs | None] | None
    """Per position, None where not asked for; None if nobody asked."""


class Told(NamedTuple):
    """What a device drew at S positions."""

    token_ids: Tensor
    """int64 [S] on the device; 0 where unhealthy"""
    arriving: Arriving
    """int64 [3, S]: ids, whether the offer sufficed, health"""


class Draw(Protocol):
    """A draw at S positions that has begun."""

    late: bool
    """Whether `result` may have to wait, or to draw with all ranks."""
    redrawn: bool
    """Whether `result` found that what was on the device was wrong."""

    def on(self, device: torch.device) -> Tensor:
        """int64 [S] ids on the device, for steps behind this one."""

    def result(self) -> Drawn:
        """The same for the host; collective where `late`."""


class DrawnNow:
    """A draw that the host has made."""

    late = redrawn = False

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn

    def on(self, device: torch.device) -> Tensor:
        return sent(self._drawn.token_ids, device)

    def result(self) -> Drawn:
        return self._drawn


class DrawnLater:
    """A draw that the device makes."""

    late = True

    def __init__(self, told: Told, on_host: Callable[[], Drawn] | None = None) -> None:
        """`on_host`: draws again where offers did not suffice; None where they always do."""
        self._told = told
        self._on_host = on_host
        self._drawn: Drawn | None = None
        self.redrawn = False

    def on(self, device: torch.device) -> Tensor:
        if self.redrawn:
            return sent(self.result().token_ids, device)
        return self._told.token_ids

    def result(self) -> Drawn:
        if self._drawn is None:
            token_ids, covered, healthy = self._told.arriving.numpy()
            self.redrawn = self._on_host is not None and not covered.all()
            if self._on_host is not None and self.redrawn:
                self._drawn = self._on_host()
            else:
                self._drawn = Drawn(token_ids, healthy.astype(np.bool_), None)
            self._on_host = None  # and the logits it holds
        return self._drawn
