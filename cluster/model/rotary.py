"""Rotary positions: how fast each pair of a head's elements turns, and the tables of angles.

Owns the frequencies, with the stretching that Llama 3.1 was trained with. Knows no model and no
attention. Everything is float32, the arithmetic the family was trained in: at position 131,071 one
unit in the last place of a frequency is 0.008 radians, so frequencies are those of transformers to
the bit, and taken on the CPU whatever the device of the tables.
"""

import math

import torch
from torch import Tensor

from cluster.attention.backend import RotaryTable
from cluster.model.model_config import Llama3Scaling


def inverse_frequencies(
    head_dim: int, theta: float, scaling: Llama3Scaling | None = None
) -> Tensor:
    """float32 [H/2] radians per position: theta ** (-2i / H), stretched where `scaling` says so."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**exponents
    return frequencies if scaling is None else _stretched(frequencies, scaling)


def rotary_table(inverse_frequencies: Tensor, positions: int, device: torch.device) -> RotaryTable:
    """cos and sin of every angle, float32 [positions, H/2] each."""
    counted = torch.arange(positions, dtype=torch.float32)
    angles = torch.outer(counted, inverse_frequencies)
    cos = angles.cos().to(device)
    return RotaryTable(cos, angles.sin_().to(device))


def _stretched(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's rule: waves longer than the old context slow down by `factor`, short ones stay.

    wavelength   |-- kept --|-- between the two --|-- / factor --|
                       context / high        context / low
    """
    context = scaling.original_max_position
    wavelengths = 2 * math.pi / frequencies
    is_long = wavelengths > context / scaling.low_freq_factor
    is_short = wavelengths < context / scaling.high_freq_factor
    blend = (context / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    slowed = torch.where(is_long, frequencies / scaling.factor, frequencies)
    return torch.where(is_long | is_short, slowed, between)
