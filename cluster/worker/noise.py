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

_MUL_1 = 0xBF58476D1CE4E5B9
_MUL_2 = 0x94D049BB133111EB
_ODD_1 = 0xD1342543DE82EF95
_ODD_2 = 0x9E3779B97F4A7C15

MAX_VOCAB = 1 << 24
"""No vocabulary is larger: ids travel between ranks as float32, which is exact up to here, and
ids from here on name uniform numbers that belong to no token."""


def row_keys(
    seeds: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """int64 seeds and positions [S] -> keys [S, 1]."""
    keys = _mix(seeds.view(np.uint64))
    keys = _mix(keys + positions.view(np.uint64) * np.uint64(_ODD_1))
    return keys[:, np.newaxis]


def gumbel(
    keys: npt.NDArray[np.uint64], token_ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise.

    Args:
        keys: [S, 1] from `row_keys`.
        token_ids: [S, C] or [C], ids in the whole vocabulary.
    """
    noise: npt.NDArray[np.float64] = -np.log(-np.log(_uniform(keys, token_ids)))
    return noise


def uniform(keys: npt.NDArray[np.uint64], attempt: int) -> npt.NDArray[np.float64]:
    """One number in (0, 1) per row and attempt, [S, 1]; `keys` as for `gumbel`."""
    return _uniform(keys, np.array([MAX_VOCAB + attempt]))


def _uniform(
    keys: npt.NDArray[np.uint64], token_ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    bits = _mix((token_ids + 1).view(np.uint64) * np.uint64(_ODD_2) + keys)
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MUL_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MUL_2)
    return x ^ (x >> np.uint64(31))
