"""TorchKernels: the dense operations in plain torch, on any device; the others' oracle.

Owns one choice: matrices in bfloat16 on a CPU whose float32 units are faster are widened for every
call with many rows (see `selection`). Knows no layers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.kernels.fp8 import Fp8Weight
from cluster.kernels.int8 import TorchInt8Weight
from cluster.kernels.kernels import DrawOffered, LinearWeight, Quantization

NEVER = 1 << 62


class PlainWeight:
    """[N, K] as the checkpoint has it."""

    def __init__(
        self,
        n: int,
        k: int,
        bias: bool,
        device: torch.device,
        dtype: torch.dtype,
        widen_from: int = NEVER,
    ) -> None:
        """`widen_from`: rows from which the product is taken in float32."""
        self.shape = (n, k)
        self.weight = torch.empty((n, k), device=device, dtype=dtype)
        self.bias = torch.empty(n, device=device, dtype=dtype) if bias else None
        self._widen_from = widen_from

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def write(self, row: int, rows: Tensor) -> None:
        self.weight[row : row + rows.shape[0]].copy_(rows)

    def __call__(self, x: Tensor, full_precision: bool = False) -> Tensor:
        if full_precision and x.is_cuda and x.dtype is not torch.float32:
            sums = torch.mm(x, self.weight.t(), out_dtype=torch.float32)
            return sums if self.bias is None else sums.add_(self.bias)
        if full_precision or x.shape[0] >= self._widen_from:
            bias = None if self.bias is None else self.bias.float()
            wide = F.linear(x.float(), self.weight.float(), bias)
            return wide if full_precision else wide.to(x.dtype)
        return F.linear(x, self.weight, self.bias)

    def embedding(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class TorchKernels:
    """Plain torch."""

    name = "torch"
    draw_offered: DrawOffered | None = None
    layout = "rows"

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        reason: str = "asked for",
        widen_from: int = NEVER,
        quantization: Quantization = "none",
    ) -> None:
        self._device = device
        self._quantization = quantization
        if quantization != "none":
            self.layout = f"rows of {quantization}"
        self._dtype = dtype
        self._reason = reason
        self._widen_from = widen_from

    def linear_weight(self, n: int, k: int, bias: bool = False) -> LinearWeight:
        if self._quantization == "int8":
            return TorchInt8Weight(n, k, bias, self._device, self._dtype)
        if self._quantization == "fp8":
            return Fp8Weight(n, k, bias, self._device, self._dtype)
        return PlainWeight(n, k, bias, self._device, self._dtype, self._widen_from)

    def head_weight(self, n: int, k: int) -> LinearWeight:
        if self._quantization == "fp8":
            return PlainWeight(n, k, False, self._device, self._dtype)
        return self.linear_weight(n, k)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        residual = residual + x
        return F.rms_norm(residual, weight.shape, weight, eps), residual

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    def row_argmax(self, logits: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        values, ids = logits[:, :limit].float().max(-1)
        return values, ids, values < math.inf

    def signature(self) -> str:
        instructions = torch.backends.cpu.get_cpu_capability()
        device = instructions if self._device.type == "cpu" else torch.cuda.get_device_name()
        widened = f", {self._widen_from} widened" if self._widen_from < NEVER else ""
        return f"torch {torch.__version__} on {device} in {self.layout}{widened}"

    def describe(self) -> list[str]:
        lines = [f"dense layers: torch ({self._reason})"]
        if self._quantization != "none":
            lines.append(f"linear: torch in {self._quantization}")
        if self._quantization == "fp8":
            lines.append("logits: torch in the checkpoint's numbers")
            if self._device.type == "cpu":
                lines.append("fp8 on a CPU is computed for its numbers, not for its speed")
        elif self._widen_from < NEVER:
            lines.append(f"linear from {self._widen_from} rows: torch in float32 (measured faster)")
        return lines
