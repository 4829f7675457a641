from typing import Any

import pytest
import torch

from cluster.kernels.fp8 import Fp8Weight
from cluster.kernels.tiled import TILE, TiledWeight
from cluster.kernels.torch_kernels import PlainWeight

CPU = torch.device("cpu")


def weight(kind: Any, dtype: torch.dtype) -> Any:
    made = kind(48, 64, True, CPU, dtype)
    generator = torch.Generator().manual_seed(3)
    made.write(0, torch.randn(48, 64, generator=generator))
    made.bias.copy_(torch.randn(48, generator=generator))
    return made


@pytest.mark.parametrize("rows", [0, 1, TILE - 1, TILE, TILE + 1, 3 * TILE + 5])
@pytest.mark.parametrize(("kind", "wide"), [(PlainWeight, False), (PlainWeight, True)])
def test_a_product_in_tiles_is_the_product(rows: int, kind: Any, wide: bool) -> None:
    plain = weight(kind, torch.float32)
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows))
    got = TiledWeight(plain)(x, wide)
    assert got.shape == (rows, 48)
    torch.testing.assert_close(got, plain(x, wide))


@pytest.mark.parametrize("kind", [PlainWeight, Fp8Weight])
def test_a_row_has_its_bits_whoever_is_beside_it_and_however_many(kind: Any) -> None:
    tiled = TiledWeight(weight(kind, torch.bfloat16))
    x = torch.randn(2 * TILE + 9, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    whole = tiled(x)
    for rows in (1, 7, TILE, TILE + 3):
        assert torch.equal(tiled(x[:rows]), whole[:rows])
    assert torch.equal(tiled(x[TILE : TILE + 5]), whole[TILE : TILE + 5])


def test_it_holds_what_the_weight_within_holds() -> None:
    plain = weight(PlainWeight, torch.float32)
    tiled = TiledWeight(plain)
    assert (tiled.shape, tiled.nbytes) == (plain.shape, plain.nbytes)
    assert tiled.tensors().keys() == plain.tensors().keys()
    tiled.write(2, torch.ones(1, 64))
    assert torch.equal(tiled.embedding(torch.tensor([2])), torch.ones(1, 64))
