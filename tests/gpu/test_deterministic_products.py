"""On a GPU: what deterministic mode promises of its products."""

import pytest
import torch

from cluster.kernels.kernels import Quantization

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("quantization", ["none", "fp8"])
@pytest.mark.parametrize(("n", "k"), [(7168, 5120), (5120, 27_648), (1280, 640)])
def test_a_rows_product_has_the_same_bits_in_any_batch_and_place(
    n: int, k: int, quantization: Quantization
) -> None:
    from cluster.kernels.triton_kernels import TritonKernels

    device = torch.device("cuda")
    kernels = TritonKernels(device, torch.bfloat16, quantization, deterministic=True)
    weight = kernels.linear_weight(n, k)
    generator = torch.Generator(device).manual_seed(4)
    weight.write(0, torch.randn(n, k, generator=generator, device=device))
    x = torch.randn(300, k, generator=generator, device=device).bfloat16()
    alone = torch.cat([weight(row) for row in torch.split(x[:40], 1)])
    for beside in (40, 64, 129, 300):
        assert torch.equal(weight(x[:beside])[:40], alone)
    assert torch.equal(weight(x.flip(0)).flip(0)[:40], alone)
