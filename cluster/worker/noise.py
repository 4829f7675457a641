"""Counter-based noise: a pure function of (seed, position of the drawn token, token id).

Nothing else enters, so a request draws the same text alone or in a batch, in any row, at any
tensor-parallel size and after a preemption; no generator has a state that could be lost.

    key   = mix(mix(seed) + position * ODD_1)         once per row
    bits  = mix(key + (id + 1) * ODD_2)               once per row and id
    u     = 52 of the bits                            uniform in (0, 1)
    noise = -log(-log(u))                             standard Gumbel

One uniform number per row serves draws from the whole vocabulary: its `id` is beyond all real ones.

`mix` is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
Generators, OOPSLA 2014), ODD_2 its increment.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_MUL_1 = 0xBF58476D1CE4E5B9
_MUL_2 = 0x94D049BB133111EB
_ODD_1 = 0xD1342543DE82EF95
_ODD_2 = 0x9E3779B97F4A7C15

MAX_VOCAB = 1 << 24
"""No vocabulary is larger: ids travel between ranks as float32, which is exact up to here, and
ids from here on name uniform numbers that belong to no token."""


def row_keys(seeds: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> Tensor:
    """int64 seeds and positions [S] -> int64 keys [S]."""
    with np.errstate(over="ignore"):
        keys = _mix_rows(seeds.view(np.uint64))
        keys = _mix_rows(keys + positions.view(np.uint64) * np.uint64(_ODD_1))
    return torch.from_numpy(keys.view(np.int64))


def gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float32.

    Args:
        keys: int64 [S, 1] from `row_keys`.
        token_ids: int64 [S, C] or [C], ids in the whole vocabulary.
    """
    return _uniform(keys, token_ids).log_().neg_().log_().neg_().float()


def uniform(keys: Tensor, attempt: int) -> Tensor:
    """One number in (0, 1) per row and attempt, float64 [S, 1]; `keys` as for `gumbel`."""
    return _uniform(keys, torch.tensor([MAX_VOCAB + attempt], device=keys.device))


def _uniform(keys: Tensor, token_ids: Tensor) -> Tensor:
    bits = _mix((token_ids + 1) * _signed(_ODD_2) + keys)
    return ((bits >> 12) & ((1 << 52) - 1)).double().add_(0.5).mul_(2.0**-52)


def _mix_rows(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MUL_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MUL_2)
    return x ^ (x >> np.uint64(31))


def _mix(x: Tensor) -> Tensor:
    """The same on int64 tensors: products wrap, and the mask makes a right shift logical."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(_MUL_1)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(_MUL_2)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _signed(value: int) -> int:
    """An unsigned 64-bit constant as torch's int64 holds it."""
    return value - (1 << 64) if value >> 63 else value
