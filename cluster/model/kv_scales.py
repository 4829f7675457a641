"""KVScales: keys and values at a height that 8-bit floating point holds well.

Owns one factor per kv head for its keys, one for its values. They are powers of two, so that they
round nothing, and are taken back where they cancel out: keys in the queries, values in the result.
So the cache itself knows no scale, and whatever kernel reads it needs none:

    q . k = (q s) . (k / s)             attention(q, k, v) = t * attention(q, k, v / t)

Knows no cache and no pages.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cluster.attention.backend import FP8_LARGEST

HEADROOM = 8.0
"""Times the largest number that was seen; beyond it numbers are cut off. It costs no precision, as
the format keeps its three bits over fifteen octaves."""


class KVScales(NamedTuple):
    """One layer's, on one rank."""

    before: Tensor
    """[N + 2K, 1], for queries, keys and values before they are stored"""
    behind: Tensor
    """[N, 1], for what attention gives"""

    @classmethod
    def fitting(cls, largest: Tensor, num_heads: int) -> "KVScales":
        """For numbers up to `largest` [2, K], of keys and of values, in the dtype of the model."""
        wide = largest.float()
        known = wide.isfinite() & (wide > 0)
        steps = torch.where(known, wide * (HEADROOM / FP8_LARGEST), 1.0).log2().ceil()
        keys, values = steps.exp2().to(largest.dtype)
        group = num_heads // len(keys)
        before = torch.cat((keys.repeat_interleave(group), 1 / keys, 1 / values))
        return cls(before.unsqueeze(1), values.repeat_interleave(group).unsqueeze(1))
