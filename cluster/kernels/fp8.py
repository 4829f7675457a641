"""8-bit floating-point matrices (e4m3): a scale per output and one per row of activations.

Owns what `quantization: fp8` means; torch's scaled product computes it, on GPUs with 8-bit units
and, for tests, on CPUs. Rows and outputs are scaled so that their largest number becomes 448, the
format's largest; https://arxiv.org/abs/2209.05433 describes the format.
"""

import torch
from torch import Tensor

LARGEST = 448.0
MULTIPLE = 16
"""The product takes sizes that are multiples of this."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] -> (e4m3 [M, K], scales float32 [M, 1])."""
    wide = x.float()
    scale = (wide.abs().amax(1, keepdim=True) / LARGEST).clamp_min(1e-12)
    return (wide / scale).to(torch.float8_e4m3fn), scale


class Fp8Weight:
    """[N, K] in e4m3 and [N] scales."""

    def __init__(
        self, n: int, k: int, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Raises ValueError: a size is no multiple of 16."""
        if n % MULTIPLE or k % MULTIPLE:
            raise ValueError(
                f"quantization: fp8 needs sizes in multiples of {MULTIPLE}, not {n} x {k}: use "
                "another tensor_parallel_size or quantization: none"
            )
        self.shape = (n, k)
        self.bias = torch.zeros(n, device=device, dtype=dtype) if bias else None
        self._numbers = torch.zeros((n, k), device=device, dtype=torch.float8_e4m3fn)
        self._scale = torch.zeros((1, n), device=device, dtype=torch.float32)
        self._dtype = dtype

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
        numbers, scale = quantize_rows(x)
        wide = torch.float32 if full_precision else torch.bfloat16
        y = torch._scaled_mm(
            numbers, self._numbers.t(), scale_a=scale, scale_b=self._scale, out_dtype=wide
        )
        y = y if self.bias is None else y + self.bias
        return y if full_precision else y.to(self._dtype)

    def embedding(self, ids: Tensor) -> Tensor:
        wide = self._numbers[ids].float() * self._scale[0, ids].unsqueeze(1)
        return wide.to(self._dtype)
