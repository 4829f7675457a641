"""A cache of e4m3: the textbook over what is left of keys and values, and nothing else."""

from tests.cluster import triton_interpreter  # isort: skip

import pytest
import torch

from cluster.attention.backend import (
    FP8,
    FP8_LARGEST,
    AttentionBackend,
    allocate_kv_layer,
    make_finite,
    narrowed,
)
from cluster.attention.cpu import TorchAttention
from cluster.attention.triton.attention import TritonAttention
from tests.cluster.attention.textbook import Case, step, turning, unturned

assert triton_interpreter
CASES = [
    Case([(0, 1), (15, 1), (40, 1)], 16, 10, 2, 16),
    Case([(31, 1), (16, 3), (0, 9)], 16, 2, 2, 12),
    Case([(70, 20)], 64, 5, 1, 8),
    Case([(250, 1), (255, 8)], 256, 5, 1, 128),
]


def torch_backend(case: Case) -> AttentionBackend:
    return TorchAttention(case.block_size, case.kv_heads * case.head_dim, torch.float32)


def triton_backend(case: Case) -> AttentionBackend:
    return TritonAttention(case.block_size, case.shape(), 8, (9, 0), 4, False)


BACKENDS = pytest.mark.parametrize("backend", [torch_backend, triton_backend])


@BACKENDS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_was_rounded_is_attended_to_as_it_is(case: Case, backend: type) -> None:
    order = list(range(case.num_blocks, 0, -1))
    made = step(case, order, unturned(case.head_dim), kept=FP8)
    out = backend(case).plan(made.metadata).attend(made.kv_layer, made.qkv, made.rotary)
    assert made.kv_layer.dtype is FP8
    torch.testing.assert_close(out, made.expected, atol=1e-5, rtol=1e-5)


@BACKENDS
def test_keys_are_turned_before_they_are_rounded(backend: type) -> None:
    """A turned number on the border of two of the format's may fall to either side."""
    case = CASES[0]
    made = step(case, list(range(1, case.num_blocks + 1)), turning(case.head_dim), kept=FP8)
    out = backend(case).plan(made.metadata).attend(made.kv_layer, made.qkv, made.rotary)
    torch.testing.assert_close(out, made.expected, atol=2e-2, rtol=2e-2)


@BACKENDS
def test_what_the_format_cannot_hold_becomes_its_largest_number(backend: type) -> None:
    case = Case([(0, 4)], 16, 2, 1, 8)
    made = step(case, [2], unturned(8), kept=FP8)
    made.qkv[:, 2:] = torch.tensor([1e6, -1e6, 448.0, 449.0, -3.0, 0.0, 1e-9, 17.0])
    layer = allocate_kv_layer(4, 16, 1, 8, FP8, torch.device("cpu"))
    backend(case).plan(made.metadata).attend(layer, made.qkv, made.rotary)
    kept = torch.tensor([448.0, -448.0, 448.0, 448.0, -3.0, 0.0, 0.0, 16.0])
    assert torch.equal(layer[:, 2, :4, 0].float(), kept.expand(2, 4, 8))
    layer[:, 2, :4] = 0
    assert not layer.float().any()


@pytest.mark.parametrize("dtype", [FP8, torch.float32, torch.bfloat16])
def test_blocks_are_made_finite_and_keep_what_is_a_number(dtype: torch.dtype) -> None:
    layer = allocate_kv_layer(3, 4, 1, 8, dtype, torch.device("cpu"))
    layer[:, 1:] = narrowed(torch.full((2, 2, 4, 1, 8), 1.5), dtype)
    layer[0, 1, 2] = float("nan")
    layer[1, 2, 0] = float("nan")
    make_finite(layer, torch.tensor([1]))
    assert layer[0, 1, 2].float().tolist() == [[0.0] * 8]
    assert (layer[0, 1, [0, 1, 3]].float() == 1.5).all()
    assert layer[1, 2, 0].float().isnan().all()  # nobody asked for it
    assert narrowed(torch.tensor(FP8_LARGEST * 9), FP8).float() == FP8_LARGEST
