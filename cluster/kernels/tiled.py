"""TiledWeight: products of one shape, whatever the number of rows.

A GPU's library chooses how to cut a product by its size, and with it the order of the sums: a row's
bits change with the rows beside it. Taken TILE rows at a time, the last ones padded, every product
is the same kernel, and a row's bits are its own. Owns the cutting; what a weight holds and computes
is that of the one within.

    [300, K]   | 128 | 128 | 44 + 84 zeros |  ->  [300, N]
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.kernels.kernels import LinearWeight

TILE = 128
"""Up to so many rows a product costs what its weights cost to read."""


class TiledWeight:
    """A weight, asked for TILE rows at a time."""

    def __init__(self, weight: LinearWeight) -> None:
        self._weight = weight
        self.shape = weight.shape
        self.bias = weight.bias

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes

    def tensors(self) -> dict[str, Tensor]:
        return self._weight.tensors()

    def write(self, row: int, rows: Tensor) -> None:
        self._weight.write(row, rows)

    def __call__(self, x: Tensor, full_precision: bool = False) -> Tensor:
        rows = len(x)
        whole = F.pad(x, (0, 0, 0, -rows % TILE))
        products = [self._weight(tile, full_precision) for tile in torch.split(whole, TILE)]
        return torch.cat(products)[:rows]

    def embedding(self, ids: Tensor) -> Tensor:
        return self._weight.embedding(ids)
