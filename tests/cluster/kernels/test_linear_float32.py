"""Compiled linears on packed float32 weights, against float64 products of the same numbers.

The tolerance is what float32 sums of K products may lose; equality of rows is equality of bits.
"""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.kernels.native_kernels import PackedFloatWeight

native = pytest.importorskip(
    "cluster.kernels._native", reason="the compiled kernels are not built on this machine"
)
if not native.linear_variants():
    pytest.skip("this CPU has none of the instructions they need", allow_module_level=True)


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(weight: Tensor, bias: Tensor | None = None) -> PackedFloatWeight:
    held = PackedFloatWeight(native, weight.shape[0], weight.shape[1], bias is not None)
    held.write(0, weight)
    if bias is not None and held.bias is not None:
        held.bias.copy_(bias)
    return held


@settings(deadline=None, max_examples=80)
@given(
    m=st.integers(0, 70),
    n=st.integers(1, 150),
    k=st.integers(1, 300),
    gap=st.integers(0, 5),
    biased=st.booleans(),
)
def test_any_shape_and_row_stride_gives_the_exact_products(
    m: int, n: int, k: int, gap: int, biased: bool
) -> None:
    x, weight = numbers(m, k + gap, seed=m)[:, gap:], numbers(n, k, seed=n)
    bias = numbers(n, seed=k) if biased else None
    result = packed(weight, bias)(x)
    assert result.shape == (m, n)
    assert result.dtype == torch.float32
    exact = x.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    magnitude = x.double().abs() @ weight.double().abs().T + 1.0
    assert bool(((result - exact).abs() <= 2.0**-23 * max(16, k) * magnitude).all())


@pytest.mark.parametrize("k", [96, 769, 4400])
def test_a_row_has_the_same_bits_alone_and_among_any_others(k: int) -> None:
    weight = packed(numbers(70, k, seed=1), numbers(70, seed=2))
    rows = numbers(450, k, seed=3)
    alone = torch.cat([weight(row[None]) for row in rows])
    for m in [*range(2, 40), 64, 128, 255, 256, 257, 450]:
        for first in {0, 450 - m}:
            assert torch.equal(weight(rows[first : first + m]), alone[first : first + m]), m


@pytest.mark.parametrize("m", [1, 5, 33, 257])
def test_the_number_of_threads_leaves_every_bit_alone(m: int) -> None:
    weight, x = packed(numbers(230, 770, seed=1)), numbers(m, 770, seed=2)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(weight(x))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 130), k=st.integers(1, 90), cut=st.integers(0, 130), gap=st.integers(0, 7))
def test_rows_written_in_pieces_come_back_as_they_were(n: int, k: int, cut: int, gap: int) -> None:
    weight, middle = numbers(n, k + gap)[:, gap:], min(cut, n - 1)
    held = PackedFloatWeight(native, n, k, False)
    held.tensors()["packed"].fill_(float("nan"))
    held.write(middle, weight[middle:])
    held.write(0, weight[:middle])
    ids = torch.arange(n - 1, -1, -1)
    assert torch.equal(held.embedding(ids), weight[ids])
    assert not held.tensors()["packed"].isnan().any()


def test_what_does_not_fit_is_refused_with_its_numbers() -> None:
    weight = packed(numbers(40, 8)).tensors()["packed"]
    with pytest.raises(RuntimeError, match="40 x 12"):
        native.linear_float32(numbers(2, 12), weight, 40, None)
    with pytest.raises(RuntimeError, match="bias"):
        native.linear_float32(numbers(2, 8), weight, 40, numbers(39))
    with pytest.raises(RuntimeError, match="neighbouring columns"):
        native.linear_float32(numbers(8, 2).T, weight, 40, None)
    with pytest.raises(RuntimeError, match="float32"):
        native.linear_float32(numbers(2, 8).bfloat16(), weight, 40, None)
