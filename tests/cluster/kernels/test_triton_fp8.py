"""The 8-bit rounding of GPUs, interpreted, against torch's to the bit."""

from tests.cluster import triton_interpreter  # isort: skip

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.kernels import fp8, triton_fp8

assert triton_interpreter


def same(x: torch.Tensor) -> None:
    numbers, scale = triton_fp8.quantize_rows(x)
    wanted, wanted_scale = fp8.quantize_rows(x)
    assert torch.equal(scale, wanted_scale)
    assert torch.equal(numbers.view(torch.uint8), wanted.view(torch.uint8))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 5),
    st.sampled_from([16, 48, 640, 5120]),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.sampled_from([1e-20, 1e-3, 1.0, 1e6]),
)
def test_scales_and_numbers_are_torchs(
    rows: int, width: int, dtype: torch.dtype, size: float
) -> None:
    same((torch.randn(rows, width) * size).to(dtype))


def test_a_row_of_zeros_and_rows_that_lie_apart_are_rounded_alike() -> None:
    x = torch.randn(4, 96).to(torch.bfloat16)
    x[2] = 0
    same(x)
    same(x[:, 16:64])


def test_numbers_that_are_not_finite_spoil_their_row_alone() -> None:
    x = torch.randn(3, 64)
    x[0, 5], x[2, 6] = math.nan, math.inf
    numbers, scale = triton_fp8.quantize_rows(x)
    spoiled = (numbers.float() * scale).isfinite().all(1)
    assert spoiled.tolist() == [False, True, False]
