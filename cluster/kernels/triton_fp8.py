"""Rounding activations to 8-bit floating point as one Triton kernel: the RowQuantizer of GPUs.

Owns the kernel; what it computes, to the bit, is `fp8.quantize_rows`. In torch that is five
kernels, 256 times a step of the 32B: more than reading half of the weights saves.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cluster.kernels.fp8 import LARGEST, SMALLEST_SCALE
from cluster.kernels.triton_layers import warps


@triton.jit
def _quantize(
    x: tl.tensor,
    numbers: tl.tensor,
    scales: tl.tensor,
    stride: int,
    width: int,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    number = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    broken = tl.max((number != number).to(tl.int32), 0)
    top = tl.max(tl.abs(number), 0)
    scale = tl.maximum(tl.div_rn(top, LARGEST), SMALLEST)
    scale = tl.where(broken > 0, float("nan"), scale)
    rounded = tl.div_rn(number, scale).to(numbers.dtype.element_ty)
    tl.store(numbers + row * width + column, rounded, mask=inside)
    tl.store(scales + row, scale)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] -> (e4m3 [M, K], scales float32 [M, 1])."""
    rows, width = x.shape
    numbers = torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    if rows:
        block = triton.next_power_of_2(width)
        _quantize[(rows,)](
            x,
            numbers,
            scales,
            x.stride(0),
            width,
            LARGEST=LARGEST,
            SMALLEST=SMALLEST_SCALE,
            BLOCK=block,
            num_warps=warps(block),
        )
    return numbers, scales
