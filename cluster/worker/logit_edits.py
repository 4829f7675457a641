"""LogitEdits: changes to single logits, before temperature and filters.

Owns the arithmetic of penalties and biases on a rank's share of the vocabulary. Knows no requests:
who asked for what, and what was said so far, is `row_edits`' matter.

    factors   x / f where x > 0, else x * f     repetition penalty
    lowered   x - v                             presence and frequency penalties
    raised    x + v                             logit bias

The order is this one, so a bias is neither scaled nor weakened.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.device import sent

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Entries(NamedTuple):
    """A number for some ids of some sampling positions; no pair of the two comes twice."""

    positions: Ints
    ids: Ints
    """In the whole vocabulary; ids that no rank has are nobody's."""
    values: Floats


class LogitEdits(NamedTuple):
    """What one step changes."""

    factors: Entries
    lowered: Entries
    raised: Entries

    def apply(self, logits: Tensor, first_id: int) -> None:
        """Change float32 logits [S, V / R] in place; `first_id` of this rank's share."""
        for entries, edit in (
            (self.factors, _scale),
            (self.lowered, torch.sub),
            (self.raised, torch.add),
        ):
            local = entries.ids - first_id
            here = (local >= 0) & (local < logits.shape[1])
            if here.any():
                places = np.stack((entries.positions[here], local[here]))
                at, columns = sent(places, logits.device)
                values = sent(entries.values[here], logits.device)
                logits[at, columns] = edit(logits[at, columns], values)


def _scale(logits: Tensor, factors: Tensor) -> Tensor:
    return torch.where(logits > 0, logits / factors, logits * factors)
