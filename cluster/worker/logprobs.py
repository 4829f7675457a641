"""Logprobs: what the model thought of the drawn token and of the likeliest ones.

Owns the logarithmic probabilities of a step: of the softmax over the whole vocabulary in float32,
before penalties, biases, temperature and filters, after bans. Their sums have a fixed order, so
that equal logits give equal bits at any number of ranks and rows. Knows no requests.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.model.tp_group import TPGroup
from cluster.request import TokenLogprobs
from cluster.worker.exchange import exchange, side_by_side
from cluster.worker.logit_slices import LogitSlices, SliceSums

Floats = npt.NDArray[np.float32]

_OFFERED = 64
"""More than may be asked for, so that equal values at the border do not change who is named."""


def token_logprobs(
    logits: Tensor,
    drawn: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    slices: LogitSlices,
    group: TPGroup,
) -> list[TokenLogprobs]:
    """One per row.

    Args:
        logits: float32 [n, V / R], this rank's share.
        drawn: [n] ids in the whole vocabulary.
        counts: [n] how many of the likeliest ids to name, at most MAX_LOGPROBS.
    """
    size = logits.shape[1]
    local = torch.from_numpy(drawn).to(logits.device).unsqueeze(1) - group.rank * size
    here = (local >= 0) & (local < size)
    own = logits.gather(1, local.clamp(0, size - 1)).masked_fill(~here, -math.inf)
    _, peak, mass, maxima = slices.shares(logits)
    values, at = slices.top(logits, maxima, min(_OFFERED, size))
    ids = (at + group.rank * size).float()
    gathered = exchange(group, [own, peak, mass, values, ids])
    lse = SliceSums(side_by_side(gathered[1]), side_by_side(gathered[2])).logsumexp()
    own_logprob = gathered[0].max(0) - lse
    all_values, all_ids = side_by_side(gathered[3]) - lse, side_by_side(gathered[4])
    return _named(own_logprob[:, 0], all_values, all_ids.astype(np.int64), counts)


def _named(
    own: Floats, values: Floats, ids: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> list[TokenLogprobs]:
    """The likeliest first, of equals the lowest id."""
    order = np.lexsort((ids, -values), axis=-1)
    told = []
    for row, (logprob, count) in enumerate(zip(own.tolist(), counts.tolist(), strict=True)):
        best = order[row, :count]
        best = best[values[row, best] > -math.inf]
        told.append(TokenLogprobs(logprob, ids[row, best].tolist(), values[row, best].tolist()))
    return told
