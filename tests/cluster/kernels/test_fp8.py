import pytest
import torch

from cluster.kernels.fp8 import Fp8Weight

CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_near_the_real_one(bias: bool) -> None:
    torch.manual_seed(0)
    weight = Fp8Weight(64, 128, bias, CPU, torch.bfloat16)
    rows, x = torch.randn(64, 128), torch.randn(5, 128).to(torch.bfloat16)
    weight.write(0, rows[:32])
    weight.write(32, rows[32:])
    want = x.float() @ rows.T
    if weight.bias is not None:
        weight.bias.fill_(2.0)
        want += 2.0
    error = (weight(x).float() - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert error < 0.05
    assert weight(x[:0]).shape == (0, 64)


def test_sizes_that_the_product_cannot_take_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16, not 40 x 128"):
        Fp8Weight(40, 128, False, CPU, torch.bfloat16)
