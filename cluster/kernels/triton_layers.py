"""Norms and the gated activation as one Triton kernel each.

Owns the kernels and their launches; one program a row, or a part of one. Rows are taken as they
lie, numbers within a row beside each other. Everything is computed in float32 and rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PART = 1024
"""Columns of the activation that one program computes."""


@triton.jit
def _norm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    x_stride: int,
    residual_stride: int,
    width: int,
    eps: float,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    number = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        beside = residual + row * residual_stride + column
        total = number + tl.load(beside, mask=inside, other=0.0).to(tl.float32)
        total = total.to(residual.dtype.element_ty)
        tl.store(beside, total, mask=inside)
        number = total.to(tl.float32)
    mean = tl.sum(number * number, 0) / width
    scaled = number * tl.rsqrt(mean + eps) * tl.load(weight + column, mask=inside).to(tl.float32)
    tl.store(out + row * width + column, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _silu_and_mul(
    gate_up: tl.tensor, out: tl.tensor, stride: int, width: int, BLOCK: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * stride + column, mask=inside).to(tl.float32)
    up = tl.load(gate_up + row * stride + width + column, mask=inside).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * width + column, product.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[M, D] -> x / rms(x) * weight."""
    return _launch_norm(x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """norm(residual + x) [M, D]; `residual` becomes the sum."""
    return _launch_norm(x, residual, weight, eps)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """[M, 2F] = [gate | up] -> silu(gate) * up [M, F]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        grid = (rows, triton.cdiv(width, PART))
        _silu_and_mul[grid](gate_up, out, gate_up.stride(0), width, BLOCK=PART, num_warps=4)
    return out


def _launch_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    rows, width = x.shape
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if rows:
        beside = x if residual is None else residual
        block = triton.next_power_of_2(width)
        _norm[(rows,)](
            x,
            beside,
            weight,
            out,
            x.stride(0),
            beside.stride(0),
            width,
            eps,
            ADD=residual is not None,
            BLOCK=block,
            num_warps=warps(block),
        )
    return out


def warps(block: int) -> int:
    """For one program over `block` numbers: 16 numbers a thread, within what a GPU has."""
    return int(min(max(block // 512, 1), 16))
