"""8-bit matrices: the extension and torch agree to the bit, and both are near the real product."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.kernels import native
from cluster.kernels.int8 import (
    GPU_LEAST_ROWS,
    NativeInt8Weight,
    TorchInt8Weight,
    quantize_rows,
)

CPU = torch.device("cpu")


def extension() -> Any:
    module, reason = native.load()
    if module is None or not module.int8_variants():
        pytest.skip(f"no compiled 8-bit kernels here: {reason}")
    return module


def both(n: int, k: int, bias: bool) -> tuple[NativeInt8Weight, TorchInt8Weight]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, k, generator=generator).to(torch.bfloat16)
    compiled = NativeInt8Weight(extension(), n, k, bias, variant=lambda rows: 0)
    plain = TorchInt8Weight(n, k, bias, CPU, torch.bfloat16)
    for weight in (compiled, plain):
        for row in range(0, n, 32):
            weight.write(row, rows[row : row + 32])
        if weight.bias is not None:
            weight.bias.copy_(torch.linspace(-1, 1, n))
    return compiled, plain


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(2, 150), st.booleans())
def test_the_extension_and_torch_agree_to_the_bit(m: int, n: int, k: int, bias: bool) -> None:
    compiled, plain = both(n, k, bias)
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).to(torch.bfloat16)
    for variant in range(len(extension().int8_variants())):
        assert torch.equal(compiled.product(x, variant, full_precision=True), plain(x, True))
        assert torch.equal(compiled.product(x, variant), plain(x))


def test_many_rows_and_inputs_agree_to_the_bit_whoever_multiplies() -> None:
    compiled, plain = both(200, 1500, True)
    x = torch.randn(450, 1500).to(torch.bfloat16)
    for variant in range(len(extension().int8_variants())):
        assert torch.equal(compiled.product(x, variant), plain(x))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    compiled, _ = both(64, 96, False)
    x = torch.randn(33, 96).to(torch.bfloat16)
    x[7] *= 1000
    together = compiled(x, full_precision=True)
    for row in range(33):
        assert torch.equal(compiled(x[row : row + 1], full_precision=True)[0], together[row])


def test_the_product_is_near_the_real_one() -> None:
    torch.manual_seed(0)
    weight = TorchInt8Weight(256, 512, False, CPU, torch.float32)
    rows, x = torch.randn(256, 512).to(torch.bfloat16), torch.randn(16, 512)
    weight.write(0, rows)
    want = x @ rows.float().T
    error = (weight(x) - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert error < 0.02


def test_quantising_keeps_zeros_and_the_largest() -> None:
    integers, scale = quantize_rows(torch.tensor([[0.0, 0.0], [0.5, -2.0]]))
    assert integers.tolist() == [[0, 0], [32, -127]]
    assert scale.tolist() == [[0.0], [pytest.approx(2 / 127)]]


def test_rows_of_the_matrix_come_back_within_half_a_step() -> None:
    compiled, plain = both(70, 33, False)
    ids = torch.tensor([0, 69, 3, 3])
    assert torch.equal(compiled.embedding(ids), plain.embedding(ids))


def test_few_rows_are_padded_to_what_a_gpu_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = TorchInt8Weight(24, 32, True, CPU, torch.bfloat16)
    weight.write(0, torch.randn(24, 32))
    x = torch.randn(40, 32).to(torch.bfloat16)
    want = [weight(x[:rows]) for rows in (1, 16, 17, 40)]
    multiply = torch._int_mm

    def as_a_gpu(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        assert len(left) > 16
        return multiply(left, right)

    monkeypatch.setattr(torch, "_int_mm", as_a_gpu)
    weight.least_rows = GPU_LEAST_ROWS
    for rows, expected in zip((1, 16, 17, 40), want, strict=True):
        assert torch.equal(weight(x[:rows]), expected)
    assert weight(x[:0]).shape == (0, 24)


def test_sizes_that_a_gpu_cannot_multiply_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="multiples of 8 on a GPU, not 20 x 32"):
        TorchInt8Weight(20, 32, False, torch.device("cuda"), torch.bfloat16)
