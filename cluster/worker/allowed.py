"""Allowed: which ids may be drawn at some positions of a step, as bits over the whole vocabulary.

Owns how a rank applies its share of them to its share of the logits. Knows no grammars.

    bits     | byte 0 | byte 1 | ...            id i is bit i % 8 of byte i // 8
    rank r     ids r V / R to (r + 1) V / R - 1, which need not begin with a byte
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.device import sent


class Allowed(NamedTuple):
    """Of M sampling positions; at all others every id may be drawn."""

    positions: npt.NDArray[np.int64]
    """[M] index of a sampling position, ascending"""
    bits: npt.NDArray[np.uint8]
    """[M, bytes] of at least V / 8 bytes"""


def forbid_others(logits: Tensor, allowed: Allowed, first_id: int) -> None:
    """-inf for ids that may not be drawn, in place.

    Args:
        logits: [S, V / R], of ids from `first_id` on.
    """
    width = logits.shape[1]
    first_byte, last_byte = first_id // 8, -(-(first_id + width) // 8)
    forbidden = _bits(~allowed.bits[:, first_byte:last_byte], logits.device)
    forbidden = forbidden[:, first_id % 8 :][:, :width]
    if len(allowed.positions) == len(logits):
        logits.masked_fill_(forbidden, -math.inf)
        return
    rows = sent(allowed.positions, logits.device)
    logits[rows] = logits[rows].masked_fill_(forbidden, -math.inf)


def _bits(packed: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """[M, bytes] -> bool [M, 8 * bytes]; they travel to another device packed."""
    if device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed, axis=1, bitorder="little")).view(torch.bool)
    return _unpacked(sent(packed, device))


def _unpacked(packed: Tensor) -> Tensor:
    """As `np.unpackbits`, which is the faster one on the host."""
    bits = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return packed.unsqueeze(-1).bitwise_right_shift(bits).bitwise_and(1).flatten(1).bool()
