"""The compiled norms, gated activation and passes over logits, against torch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

native = pytest.importorskip(
    "cluster.kernels._native", reason="the compiled kernels are not built on this machine"
)
if not native.attention_variants():
    pytest.skip("this CPU has none of the instructions they need", allow_module_level=True)

EPS = 1e-6
ULP = {torch.float32: 3e-6, torch.bfloat16: 1.6e-2}
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
widths = st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 100, 768, 896, 1000])
rows = st.sampled_from([0, 1, 2, 7, 64])


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(deadline=None, max_examples=60)
@given(rows, widths, dtypes)
def test_the_norm_is_torchs_up_to_one_rounding(count: int, width: int, dtype: torch.dtype) -> None:
    x, weight = numbers(count, width, dtype=dtype), numbers(width, dtype=dtype, seed=1)
    wanted = F.rms_norm(x, (width,), weight, EPS)
    torch.testing.assert_close(native.rms_norm(x, weight, EPS), wanted, atol=1e-6, rtol=ULP[dtype])


@settings(deadline=None, max_examples=60)
@given(rows, widths, dtypes)
def test_the_addition_before_a_norm_is_kept_in_the_residual(
    count: int, width: int, dtype: torch.dtype
) -> None:
    x, weight = numbers(count, width, dtype=dtype), numbers(width, dtype=dtype, seed=1)
    residual = numbers(count, width, dtype=dtype, seed=2)
    total = residual + x
    wanted = F.rms_norm(total, (width,), weight, EPS)
    normed = native.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(residual, total)
    torch.testing.assert_close(normed, wanted, atol=1e-6, rtol=ULP[dtype])


@settings(deadline=None, max_examples=60)
@given(rows, widths, dtypes, st.sampled_from([1.0, 30.0, 1000.0]))
def test_the_gated_activation_is_torchs(
    count: int, width: int, dtype: torch.dtype, scale: float
) -> None:
    gate_up = numbers(count, 2 * width, dtype=dtype) * scale
    gate, up = gate_up.chunk(2, -1)
    torch.testing.assert_close(
        native.silu_and_mul(gate_up), F.silu(gate) * up, atol=1e-6, rtol=ULP[dtype]
    )


def test_rows_of_a_norm_do_not_see_each_other() -> None:
    x, weight = numbers(40, 768, dtype=torch.bfloat16), numbers(768, dtype=torch.bfloat16)
    together = native.rms_norm(x, weight, EPS)
    for row in range(40):
        assert torch.equal(together[row : row + 1], native.rms_norm(x[row : row + 1], weight, EPS))


@settings(deadline=None, max_examples=60)
@given(rows, widths, dtypes)
def test_the_best_logit_is_the_first_of_the_largest(
    count: int, width: int, dtype: torch.dtype
) -> None:
    logits = (numbers(count, width, dtype=dtype) * 2).round()
    values, ids, healthy = native.row_argmax(logits, width)
    wanted = logits.float().max(-1).values
    assert torch.equal(values, wanted)
    first = (logits.float() == wanted.unsqueeze(1)).int().argmax(-1)
    assert torch.equal(ids, first)
    assert healthy.all()


def test_ids_beyond_the_limit_are_never_the_best() -> None:
    logits = torch.zeros(1, 50)
    logits[0, 40] = math.nan
    logits[0, 3] = 1.0
    values, ids, healthy = native.row_argmax(logits, 40)
    assert (values.item(), ids.item(), healthy.item()) == (1.0, 3, True)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 16, 63, 64, 99])
def test_a_poisoned_row_is_told_apart(poison: float, at: int) -> None:
    logits = torch.zeros(3, 100)
    logits[1, at] = poison
    logits[2, at] = -math.inf
    assert native.row_argmax(logits, 100)[2].tolist() == [True, False, True]


def test_a_row_without_any_finite_logit_is_poisoned() -> None:
    logits = torch.full((1, 20), -math.inf)
    assert not native.row_argmax(logits, 20)[2].item()


@settings(deadline=None, max_examples=60)
@given(rows, widths, dtypes, st.sampled_from([1.0, 50.0]))
def test_the_logsumexp_is_torchs(count: int, width: int, dtype: torch.dtype, scale: float) -> None:
    logits = numbers(count, width, dtype=dtype) * scale
    wanted = logits.float().logsumexp(-1)
    torch.testing.assert_close(native.row_logsumexp(logits, width), wanted, atol=2e-6, rtol=2e-6)
