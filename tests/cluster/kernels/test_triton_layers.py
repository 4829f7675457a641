"""Norms and activation of GPUs, interpreted, against torch's own."""

from tests.cluster import triton_interpreter  # isort: skip

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.kernels import triton_layers

assert triton_interpreter
EPS = 1e-6
ULP = {torch.float32: 3e-6, torch.bfloat16: 1.6e-2}
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
widths = st.sampled_from([1, 2, 15, 64, 65, 1000, 1024, 1025, 5120])
rows = st.sampled_from([0, 1, 2, 7])


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(deadline=None, max_examples=40)
@given(rows, widths, dtypes)
def test_the_norm_is_torchs_up_to_one_rounding(count: int, width: int, dtype: torch.dtype) -> None:
    x, weight = numbers(count, width, dtype=dtype), numbers(width, dtype=dtype, seed=1)
    wanted = F.rms_norm(x, (width,), weight, EPS)
    normed = triton_layers.rms_norm(x, weight, EPS)
    torch.testing.assert_close(normed, wanted, atol=1e-6, rtol=ULP[dtype])


@settings(deadline=None, max_examples=40)
@given(rows, widths, dtypes)
def test_the_addition_before_a_norm_is_kept_in_the_residual(
    count: int, width: int, dtype: torch.dtype
) -> None:
    x, weight = numbers(count, width, dtype=dtype), numbers(width, dtype=dtype, seed=1)
    residual = numbers(count, width, dtype=dtype, seed=2)
    total = residual + x
    normed = triton_layers.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(residual, total)
    wanted = F.rms_norm(total, (width,), weight, EPS)
    torch.testing.assert_close(normed, wanted, atol=1e-6, rtol=ULP[dtype])


@settings(deadline=None, max_examples=40)
@given(rows, widths, dtypes, st.sampled_from([1.0, 30.0]))
def test_the_gated_activation_is_torchs(
    count: int, width: int, dtype: torch.dtype, scale: float
) -> None:
    gate_up = numbers(count, 2 * width, dtype=dtype) * scale
    gate, up = gate_up.float().chunk(2, -1)
    wanted = (F.silu(gate) * up).to(dtype)
    product = triton_layers.silu_and_mul(gate_up)
    torch.testing.assert_close(product, wanted, atol=1e-6, rtol=ULP[dtype])


@pytest.mark.parametrize("dtype", ULP)
def test_rows_may_lie_apart_and_do_not_see_each_other(dtype: torch.dtype) -> None:
    wide, weight = numbers(6, 300, dtype=dtype), numbers(200, dtype=dtype, seed=1)
    x = wide[:, 40:240]
    wide[3] = float("nan")
    norm = partial(triton_layers.rms_norm, weight=weight, eps=EPS)
    for function in (norm, triton_layers.silu_and_mul):
        together = function(x)
        for row in (0, 1, 2, 4, 5):
            assert torch.equal(together[row], function(x[row : row + 1].contiguous())[0])
    residual = torch.zeros(6, 400, dtype=dtype)
    triton_layers.add_rms_norm(x, residual[:, 100:300], weight, EPS)
    assert torch.equal(residual[:3, 100:300], x[:3])
    assert not residual[:, :100].any()
    assert not residual[:, 300:].any()
