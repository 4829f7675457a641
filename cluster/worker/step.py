"""A step between its frame and its answer.

Owns its three stages' state; `ModelRunner` takes it from one to the next:

    launched   the device was given the forward pass
    drawn      ... and the draw behind it, which needs all that the host knows of earlier tokens
    settled    the answer is on the host, and in the books
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from cluster.batch import ModelRunnerOutput
from cluster.device import Arriving
from cluster.worker.drawn import Draw
from cluster.worker.input_batch import StepInputs


@dataclasses.dataclass(eq=False)
class Step:
    """One frame's work on one rank."""

    started: float
    """When, by the clock of `time.perf_counter`."""
    output: ModelRunnerOutput
    """The answer; whole once settled."""
    inputs: StepInputs | None
    """None: there is nothing to compute."""
    hidden: Tensor | None
    """[S + C + J, D] behind which tokens are drawn, of chunks' last tokens, of judged ones."""
    before: "Step | None"
    """The step before, as long as it may not be settled."""
    draw: Draw | None = None
    chunks: Arriving | None = None
    """bool [C]: whether the chunks' numbers are finite."""
    drawn: bool = False
    expected: bool = False
    """Whether a later step was launched before this one was settled."""
    settled: bool = False

    @property
    def late(self) -> bool:
        """Whether the answer may be still under way, once drawn; the same on every rank."""
        arriving = self.chunks is not None and self.chunks.late
        return not self.settled and (arriving or (self.draw is not None and self.draw.late))


class LaunchedStep:
    """Rank 0's hold on a step: see `executor.Launched`."""

    def __init__(
        self,
        step: Step,
        draw: Callable[[Step], None],
        is_last: Callable[[Step], bool],
        settle: Callable[[Step], ModelRunnerOutput],
    ) -> None:
        self._step = step
        self._draw = draw
        self._is_last = is_last
        self._settle = settle

    @torch.inference_mode()
    def begin_draw(self) -> None:
        self._draw(self._step)

    @torch.inference_mode()
    def needs_settling(self) -> bool:
        return self._is_last(self._step)

    @torch.inference_mode()
    def result(self) -> ModelRunnerOutput:
        return self._settle(self._step)
