import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import EngineConfig
from cluster.device import Device
from cluster.kernels.fp8 import LARGEST, Fp8Weight, quantize_rows
from cluster.kernels.selection import select_kernels
from cluster.kernels.torch_kernels import PlainWeight

CPU = torch.device("cpu")


def filled(
    n: int, k: int, dtype: torch.dtype, bias: bool = False
) -> tuple[Fp8Weight, torch.Tensor]:
    """A matrix written in two pieces, and what was written."""
    rows = torch.randn(n, k, generator=torch.Generator().manual_seed(n * k))
    weight = Fp8Weight(n, k, bias, CPU, dtype)
    weight.write(0, rows[: n // 2])
    weight.write(n // 2, rows[n // 2 :])
    if weight.bias is not None:
        weight.bias.copy_(torch.linspace(-2, 2, n))
    return weight, rows


def rounded(x: torch.Tensor) -> torch.Tensor:
    """What an 8-bit row stands for."""
    numbers, scale = quantize_rows(x)
    return numbers.double() * scale.double()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_the_product_is_that_of_the_rounded_numbers(
    m: int, n16: int, k16: int, bias: bool, dtype: torch.dtype
) -> None:
    weight, rows = filled(16 * n16, 16 * k16, dtype, bias)
    x = torch.randn(m, 16 * k16, generator=torch.Generator().manual_seed(m)).to(dtype)
    want = rounded(x) @ rounded(rows).T
    if weight.bias is not None:
        want += weight.bias.double()
    scale = (rounded(x).abs() @ rounded(rows).abs().T).max()
    assert weight(x).dtype is dtype
    assert (weight(x).double() - want).abs().max() < 0.02 * scale
    exact = weight(x, full_precision=True)
    assert exact.dtype is torch.float32
    assert (exact.double() - want).abs().max() < 1e-5 * scale


def test_rounding_moves_the_product_by_less_than_five_per_cent() -> None:
    weight, rows = filled(64, 128, torch.bfloat16)
    x = torch.randn(5, 128).to(torch.bfloat16)
    want = x.float() @ rows.T
    error = (weight(x).float() - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert error < 0.05
    assert weight(x[:0]).shape == (0, 64)


def test_a_row_is_scaled_by_itself() -> None:
    weight, _ = filled(64, 96, torch.bfloat16)
    x = torch.randn(33, 96).to(torch.bfloat16)
    x[7] *= 1000
    x[9] = 0
    together = weight(x, full_precision=True)
    for row in range(33):
        alone = weight(x[row : row + 1], full_precision=True)[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-5, atol=1e-5)
    assert not together[9].any()


def test_numbers_that_are_not_finite_spoil_their_row_alone() -> None:
    weight, _ = filled(32, 64, torch.bfloat16)
    x = torch.randn(3, 64)
    x[0, 5], x[2, 6] = math.nan, math.inf
    assert weight(x.to(torch.bfloat16)).isfinite().all(1).tolist() == [False, True, False]


def test_the_largest_number_of_a_row_takes_the_largest_of_the_format() -> None:
    x = torch.randn(200, 48) * torch.logspace(-20, 20, 200).unsqueeze(1)
    numbers, scale = quantize_rows(x)
    assert numbers.float().isfinite().all()
    assert (numbers.float().abs().amax(1)[scale[:, 0] > 1e-12] == LARGEST).all()


def test_a_row_of_the_matrix_is_read_back_as_it_was_rounded() -> None:
    weight, rows = filled(32, 64, torch.float32)
    ids = torch.tensor([3, 31, 3])
    torch.testing.assert_close(weight.embedding(ids).double(), rounded(rows)[ids])


def test_sizes_that_the_product_cannot_take_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16, not 40 x 128"):
        Fp8Weight(40, 128, False, CPU, torch.bfloat16)


def config(**changes: object) -> EngineConfig:
    return EngineConfig(model_path="", quantization="fp8", **changes)  # type: ignore[arg-type]


def test_layers_are_rounded_and_the_head_is_not() -> None:
    kernels = select_kernels(Device(CPU), torch.bfloat16, config())
    assert isinstance(kernels.linear_weight(32, 64, True), Fp8Weight)
    assert isinstance(kernels.head_weight(33, 65), PlainWeight)
    assert any("for its numbers, not for its speed" in line for line in kernels.describe())


@pytest.mark.parametrize("asked", [{"kernels": "native"}, {"deterministic": True}])
def test_what_only_the_compiled_kernels_give_is_refused_in_fp8(asked: dict[str, object]) -> None:
    with pytest.raises(RuntimeError, match="compiled kernels do not compute fp8"):
        select_kernels(Device(CPU), torch.bfloat16, config(**asked))


def test_a_gpu_without_8_bit_units_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(ValueError, match=r"A100 .*8\.0.*8\.9.*quantization: none"):
        select_kernels(Device(torch.device("cuda", 0)), torch.bfloat16, config())
