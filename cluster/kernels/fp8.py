"""8-bit floating-point matrices (e4m3): a scale per output and one per row of activations.

Owns what `quantization: fp8` means; torch's scaled product computes it: on GPUs with 8-bit units
for its speed, on CPUs for its numbers alone. Rows and outputs are scaled so that their largest
number becomes 448, the format's largest; https://arxiv.org/abs/2209.05433 describes the format.

    W[n, k] ~ scale[n] * e4m3[n, k]       scale[n] = max_k |W[n, k]| / 448, while loading
    x[m, k] ~ scale[m] * e4m3[m, k]       the same, row by row, at every call
"""

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST = 448.0
SMALLEST_SCALE = 1e-12
MULTIPLE = 16
"""The product takes sizes that are multiples of this."""
CAPABILITY = (8, 9)
"""The first GPUs with 8-bit floating-point units: Ada, then Hopper (9.0)."""

RowQuantizer = Callable[[Tensor], tuple[Tensor, Tensor]]
"""[M, K] -> (e4m3 [M, K], scales float32 [M, 1])."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The RowQuantizer in plain torch. Numbers that are not finite spoil their row, no other."""
    wide = x.float()
    scale = (wide.abs().amax(1, keepdim=True) / LARGEST).clamp_min(SMALLEST_SCALE)
    return (wide / scale).to(torch.float8_e4m3fn), scale


class Fp8Weight:
    """[N, K] in e4m3 and [N] scales."""

    def __init__(
        self,
        n: int,
        k: int,
        bias: bool,
        device: torch.device,
        dtype: torch.dtype,
        quantize: RowQuantizer = quantize_rows,
    ) -> None:
        """`quantize`: who rounds activations, to the same numbers as `quantize_rows`.

        Raises ValueError: a size is no multiple of 16.
        """
        if n % MULTIPLE or k % MULTIPLE:
            raise ValueError(
                f"quantization: fp8 needs sizes in multiples of {MULTIPLE}, not {n} x {k}: use "
                "another tensor_parallel_size or quantization: none"
            )
        self.shape = (n, k)
        self.bias = torch.zeros(n, device=device, dtype=dtype) if bias else None
        self._numbers = torch.zeros((n, k), device=device, dtype=torch.float8_e4m3fn)
        self._scale = torch.zeros((1, n), device=device, dtype=torch.float32)
        self._one = torch.ones((), device=device, dtype=torch.float32)
        self._dtype = dtype
        self._quantize = quantize

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        held = {"numbers": self._numbers, "scale": self._scale}
        return held | ({} if self.bias is None else {"bias": self.bias})

    def write(self, row: int, rows: Tensor) -> None:
        numbers, scale = quantize_rows(rows.to(self._numbers.device))
        self._numbers[row : row + len(rows)] = numbers
        self._scale[0, row : row + len(rows)] = scale.squeeze(1)

    def __call__(self, x: Tensor, full_precision: bool = False) -> Tensor:
        if not len(x):
            return x.new_zeros((0, self.shape[0]))
        numbers, scale = self._quantize(x)
        wide = full_precision or self._dtype is torch.float32
        y = self._wide_product(numbers, scale) if wide else self._product(numbers, scale)
        return y if self.bias is None else y.add_(self.bias)

    def _product(self, numbers: Tensor, scale: Tensor) -> Tensor:
        return torch._scaled_mm(
            numbers,
            self._numbers.t(),
            scale_a=scale,
            scale_b=self._scale,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    def _wide_product(self, numbers: Tensor, scale: Tensor) -> Tensor:
        """In float32, which GPUs give for one scale of a whole matrix only: rows come after."""
        sums = torch._scaled_mm(
            numbers,
            self._numbers.t(),
            scale_a=self._one,
            scale_b=self._one,
            out_dtype=torch.float32,
        )
        return sums.mul_(scale).mul_(self._scale)

    def embedding(self, ids: Tensor) -> Tensor:
        wide = self._numbers[ids].float() * self._scale[0, ids].unsqueeze(1)
        return wide.to(self._dtype)
