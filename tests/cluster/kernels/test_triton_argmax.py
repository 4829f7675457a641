"""The highest logits of GPUs, interpreted, against torch's."""

from tests.cluster import triton_interpreter  # isort: skip

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.kernels import triton_argmax
from cluster.kernels.triton_argmax import PART

assert triton_interpreter


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 4),
    st.sampled_from([1, 17, 704, PART - 1, PART, PART + 1, 3 * PART + 5]),
    st.integers(0, 40),
    st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_the_best_logit_is_the_first_of_the_largest(
    count: int, limit: int, beyond: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(limit)
    logits = (torch.randn(count, limit + beyond, generator=generator) * 2).round().to(dtype)
    logits[:, limit:] = 1e6
    values, ids, healthy = triton_argmax.row_argmax(logits, limit)
    wanted = logits[:, :limit].float().max(-1).values if count else torch.empty(0)
    assert torch.equal(values, wanted)
    first = (logits[:, :limit].float() == wanted.unsqueeze(1)).int().argmax(-1)
    assert torch.equal(ids, first)
    assert healthy.all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, PART, PART + 5])
def test_a_row_with_a_broken_number_is_not_healthy(bad: float, at: int) -> None:
    logits = torch.randn(3, PART + 6)
    logits[1, at] = bad
    assert triton_argmax.row_argmax(logits, PART + 6)[2].tolist() == [True, False, True]
    if at:
        assert triton_argmax.row_argmax(logits, at)[2].all()


def test_minus_infinity_is_a_number_like_others() -> None:
    logits = torch.full((1, PART + 3), -math.inf)
    logits[0, PART + 1] = -5.0
    values, ids, healthy = triton_argmax.row_argmax(logits, PART + 3)
    assert (values.item(), ids.item(), healthy.item()) == (-5.0, PART + 1, True)
