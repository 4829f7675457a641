"""8-bit matrices: a scale per output, found while loading, and one per row of activations.

Owns what `quantization: int8` means, twice: by the compiled extension and in torch, which agree to
the bit. A row's scale depends on that row alone, so neighbours never change a result.

    W[n, k] ~ scale[n] * integer[n, k]       scale[n] = max_k |W[n, k]| / 127
    x[m, k] ~ scale[m] * integer[m, k]       the same, row by row, at every call
    y[m, n] = (sum of products of integers) * scale[m] * scale[n] + bias[n]
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] -> (integers int8 [M, K] in -127 ... 127, scales float32 [M, 1])."""
    top = x.abs().amax(1, keepdim=True).float()
    inverse = torch.where(top > 0, torch.full_like(top, 127.0).div(top), 0.0)
    return (x.float() * inverse).round().to(torch.int8), top / 127.0


GPU_LEAST_ROWS = 17
"""The fewest that torch's product of integers takes on a GPU ..."""
GPU_MULTIPLE = 8
"""... and what sizes must be multiples of there."""


class TorchInt8Weight:
    """[N, K] integers and [N] scales, multiplied by torch."""

    def __init__(
        self, n: int, k: int, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Raises ValueError: the device is a GPU, and cannot multiply such sizes."""
        on_gpu = device.type == "cuda"
        if on_gpu and (n % GPU_MULTIPLE or k % GPU_MULTIPLE):
            raise ValueError(
                f"quantization: int8 needs sizes in multiples of {GPU_MULTIPLE} on a GPU, not "
                f"{n} x {k}: use another tensor_parallel_size or quantization: none"
            )
        self.least_rows = GPU_LEAST_ROWS if on_gpu else 1
        """Fewer are padded with zeros."""
        self.shape = (n, k)
        self.bias = torch.zeros(n, device=device, dtype=dtype) if bias else None
        self._integers = torch.zeros((n, k), device=device, dtype=torch.int8)
        self._scale = torch.zeros(n, device=device, dtype=torch.float32)
        self._dtype = dtype

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        held = {"integers": self._integers, "scale": self._scale}
        return held | ({} if self.bias is None else {"bias": self.bias})

    def write(self, row: int, rows: Tensor) -> None:
        integers, scale = quantize_rows(rows.to(torch.bfloat16))
        self._integers[row : row + len(rows)] = integers
        self._scale[row : row + len(rows)] = scale.squeeze(1)

    def __call__(self, x: Tensor, full_precision: bool = False) -> Tensor:
        if not len(x):
            return x.new_zeros((0, self.shape[0]))
        integers, scale = quantize_rows(x)
        missing = max(0, self.least_rows - len(x))
        padded = F.pad(integers, (0, 0, 0, missing)) if missing else integers
        sums = torch._int_mm(padded, self._integers.t())[: len(x)]
        y = sums.float().mul_(scale).mul_(self._scale)
        if self.bias is not None:
            y = y + self.bias.float()
        return y if full_precision else y.to(self._dtype)

    def embedding(self, ids: Tensor) -> Tensor:
        wide = self._integers[ids].float() * self._scale[ids].unsqueeze(1)
        return wide.to(self._dtype)


class NativeInt8Weight:
    """[N, K] packed for the 8-bit dot product of the extension."""

    def __init__(
        self, native: Any, n: int, k: int, bias: bool, variant: Callable[[int], int]
    ) -> None:
        """`variant`: number of rows -> which of the extension's `int8_variants` multiplies; all
        give the same bits."""
        self.shape = (n, k)
        self.bias = torch.zeros(n, dtype=torch.bfloat16) if bias else None
        self._native = native
        self._variant = variant
        self._packed: Tensor = native.empty_packed_int8(n, k)
        self._scale = torch.zeros(n)
        self._sum = torch.zeros(n, dtype=torch.int32)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        held = {"packed": self._packed, "scale": self._scale, "sum": self._sum}
        return held | ({} if self.bias is None else {"bias": self.bias})

    def write(self, row: int, rows: Tensor) -> None:
        narrow = rows.to(torch.bfloat16)
        self._native.pack_int8_rows_(
            self._packed, self._scale, self._sum, narrow, row, self.shape[0]
        )

    def __call__(self, x: Tensor, full_precision: bool = False) -> Tensor:
        return self.product(x, self._variant(len(x)), full_precision)

    def product(self, x: Tensor, variant: int, full_precision: bool = False) -> Tensor:
        """The same by a variant of the caller's choice."""
        dtype = torch.float32 if full_precision else torch.bfloat16
        y: Tensor = self._native.linear_int8(
            x, self._packed, self._scale, self._sum, self.bias, dtype, variant
        )
        return y

    def embedding(self, ids: Tensor) -> Tensor:
        rows: Tensor = self._native.int8_embedding(self._packed, self._scale, self.shape[1], ids)
        return rows
