"""Compiled linears on packed bfloat16 weights, against float64 products of the same numbers.

The oracle's tolerance is one rounding to bfloat16 plus what float32 sums of K products may lose.
Equality of rows is equality of bits: a row must not see its neighbours or the number of threads.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

native = pytest.importorskip(
    "cluster.kernels._native", reason="the compiled kernels are not built on this machine"
)
VARIANTS = native.linear_variants()
if not VARIANTS:
    pytest.skip("this CPU has none of the instructions they need", allow_module_level=True)

SHAPES = [(1, 1), (1, 64), (5, 3), (32, 2), (33, 7), (47, 129), (64, 768), (96, 2051)]


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(torch.bfloat16)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, wide: bool = False, variant: int = 0
) -> Tensor:
    out_dtype = torch.float32 if wide else torch.bfloat16
    packed = native.pack_linear(weight)
    result: Tensor = native.linear(x, packed, weight.shape[0], bias, out_dtype, variant)
    return result


def assert_close_to_exact(
    result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> None:
    """Within rounding of the sum of |products|, the only bound any order of additions has."""
    exact = x.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    magnitude = x.double().abs() @ weight.double().abs().T + 1.0
    rounding = 2.0**-8 if result.dtype == torch.bfloat16 else 0.0
    sums = 2.0**-23 * max(16, x.shape[1])
    error = (result.double() - exact).abs()
    assert bool((error <= rounding * exact.abs() + sums * magnitude).all()), error.max()


@pytest.mark.parametrize("variant", range(len(VARIANTS)), ids=VARIANTS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("wide", [False, True], ids=["bfloat16", "float32"])
def test_products_equal_the_exact_ones_within_rounding(
    n: int, k: int, wide: bool, variant: int
) -> None:
    weight, bias = numbers(n, k, seed=1), numbers(n, seed=2)
    for m in (1, 2, 3, 7, 12, 13, 40, 129):
        x = numbers(m, k, seed=m)
        plain = linear(x, weight, None, wide, variant)
        assert plain.shape == (m, n)
        assert_close_to_exact(plain, x, weight)
        assert_close_to_exact(linear(x, weight, bias, wide, variant), x, weight, bias)


@pytest.mark.parametrize("variant", range(len(VARIANTS)), ids=VARIANTS)
@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(0, 70),
    n=st.integers(1, 150),
    k=st.integers(1, 300),
    gap=st.integers(0, 5),
    biased=st.booleans(),
    wide=st.booleans(),
)
def test_any_shape_and_row_stride_gives_the_exact_products(
    variant: int, m: int, n: int, k: int, gap: int, biased: bool, wide: bool
) -> None:
    x = numbers(m, k + gap, seed=m)[:, gap:]
    weight = numbers(n, k, seed=n)
    bias = numbers(n, seed=k) if biased else None
    assert_close_to_exact(linear(x, weight, bias, wide, variant), x, weight, bias)


@pytest.mark.parametrize("variant", range(len(VARIANTS)), ids=VARIANTS)
@pytest.mark.parametrize("k", [96, 769, 4400])
def test_a_row_has_the_same_bits_alone_and_among_any_others(k: int, variant: int) -> None:
    weight, bias, rows = numbers(70, k, seed=1), numbers(70, seed=2), numbers(450, k, seed=3)
    packed = native.pack_linear(weight)

    def product(x: Tensor) -> Tensor:
        result: Tensor = native.linear(x, packed, 70, bias, torch.float32, variant)
        return result

    alone = torch.cat([product(row[None]) for row in rows])
    for m in [*range(2, 40), 64, 128, 255, 256, 257, 450]:
        for first in {0, 450 - m}:
            assert torch.equal(product(rows[first : first + m]), alone[first : first + m]), m


@pytest.mark.parametrize("variant", range(len(VARIANTS)), ids=VARIANTS)
@pytest.mark.parametrize("m", [1, 5, 33, 257])
def test_the_number_of_threads_leaves_every_bit_alone(m: int, variant: int) -> None:
    weight, x = numbers(230, 770, seed=1), numbers(m, 770, seed=2)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(linear(x, weight, None, True, variant))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("variant", range(len(VARIANTS)), ids=VARIANTS)
def test_the_bias_is_added_before_the_only_rounding(variant: int) -> None:
    x, weight, bias = numbers(9, 320, seed=1), numbers(48, 320, seed=2), numbers(48, seed=3)
    sums = linear(x, weight, None, True, variant)
    wide = linear(x, weight, bias, True, variant)
    assert torch.equal(wide, sums + bias.float())
    assert torch.equal(linear(x, weight, bias, False, variant), wide.to(torch.bfloat16))


@pytest.mark.parametrize("variant", range(len(VARIANTS)), ids=VARIANTS)
def test_infinity_and_not_a_number_arrive(variant: int) -> None:
    x, weight = torch.ones(3, 4, dtype=torch.bfloat16), torch.ones(40, 4, dtype=torch.bfloat16)
    weight[1, 2], weight[2, 3], weight[3, 0] = float("inf"), float("-inf"), float("nan")
    result = linear(x, weight, None, False, variant)
    assert torch.equal(result, F.linear(x, weight)) or bool(result[:, 3].isnan().all())
    assert bool((result[:, 1] == float("inf")).all())
    assert bool((result[:, 2] == float("-inf")).all())
    assert bool(result[:, 3].isnan().all())
    assert bool((result[:, 4:] == 4).all())


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_packing_and_unpacking_give_the_weight_back(n: int, k: int) -> None:
    weight = numbers(n, k)
    assert torch.equal(native.unpack_linear(native.pack_linear(weight), n, k), weight)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 130), k=st.integers(1, 90), cut=st.integers(0, 130), gap=st.integers(0, 7))
def test_a_weight_packed_in_pieces_is_the_weight_packed_at_once(
    n: int, k: int, cut: int, gap: int
) -> None:
    weight = numbers(n, k + gap)[:, :k]
    packed = native.empty_packed(n, k)
    packed.fill_(float("nan"))
    middle = min(cut, n - 1)
    native.pack_rows_(packed, weight[middle:], middle, n, k)
    native.pack_rows_(packed, weight[:middle], 0, n, k)
    assert torch.equal(packed, native.pack_linear(weight.contiguous()))


def test_embedding_rows_come_from_the_packed_weight() -> None:
    weight = numbers(100, 67)
    ids = torch.tensor([99, 0, 31, 32, 32, 7])
    rows = native.packed_embedding(native.pack_linear(weight), 100, 67, ids)
    assert torch.equal(rows, weight[ids])


def test_what_does_not_fit_is_refused_with_its_numbers() -> None:
    packed = native.pack_linear(numbers(40, 8))
    x = numbers(2, 8)
    with pytest.raises(RuntimeError, match="packed"):
        native.linear(numbers(2, 12), packed, 40, None, torch.bfloat16, 0)
    with pytest.raises(RuntimeError, match="bias"):
        native.linear(x, packed, 40, numbers(39), torch.bfloat16, 0)
    with pytest.raises(RuntimeError, match="neighbouring columns"):
        native.linear(numbers(8, 2).T, packed, 40, None, torch.bfloat16, 0)
    with pytest.raises(RuntimeError, match="no variant 9"):
        native.linear(x, packed, 40, None, torch.bfloat16, 9)
    with pytest.raises(RuntimeError, match="rows 30 "):
        native.pack_rows_(packed, numbers(16, 8), 30, 40, 8)
    with pytest.raises(IndexError, match="row 40 of 40"):
        native.packed_embedding(packed, 40, 8, torch.tensor([40]))


def test_huge_memory_is_aligned_and_outlives_its_neighbours() -> None:
    pieces = [native.huge_empty(size) for size in (100, 3 << 20, 40 << 20, 1)]
    assert [piece.numel() for piece in pieces] == [100, 3 << 20, 40 << 20, 1]
    assert all(piece.data_ptr() % 64 == 0 for piece in pieces)
    for number, piece in enumerate(pieces):
        piece.fill_(number)
    del pieces[0]
    assert [int(piece.float().mean()) for piece in pieces] == [1, 2, 3]
