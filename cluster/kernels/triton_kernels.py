"""TritonKernels: the dense operations on GPUs; what surrounds the products is one kernel each.

Owns nothing but the choice: products are torch's, norms, activation, rounding, maxima and draws are
those of `triton_layers`, `triton_fp8`, `triton_argmax` and `triton_draw`. Imported only where
triton can be.
"""

import torch
import triton
from torch import Tensor

from cluster.kernels import triton_argmax, triton_draw, triton_fp8, triton_layers
from cluster.kernels.fp8 import Fp8Weight
from cluster.kernels.kernels import DrawOffered, LinearWeight, Quantization
from cluster.kernels.tiled import TILE, TiledWeight
from cluster.kernels.torch_kernels import TorchKernels


class TritonKernels:
    """Triton around torch's products."""

    name = "triton"
    draw_offered: DrawOffered | None = staticmethod(triton_draw.draw_offered)

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        quantization: Quantization = "none",
        deterministic: bool = False,
    ) -> None:
        """`deterministic`: no row's product may depend on the rows beside it."""
        self._deterministic = deterministic
        self._products = TorchKernels(device, dtype, "products", quantization=quantization)
        self.layout = self._products.layout
        self._device = device
        self._dtype = dtype
        self._quantization = quantization

    def linear_weight(self, n: int, k: int, bias: bool = False) -> LinearWeight:
        if self._quantization == "fp8":
            fp8 = Fp8Weight(n, k, bias, self._device, self._dtype, triton_fp8.quantize_rows)
            return self._served(fp8)
        return self._served(self._products.linear_weight(n, k, bias))

    def head_weight(self, n: int, k: int) -> LinearWeight:
        return self._served(self._products.head_weight(n, k))

    def _served(self, weight: LinearWeight) -> LinearWeight:
        return TiledWeight(weight) if self._deterministic else weight

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return triton_layers.rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return triton_layers.add_rms_norm(x, residual, weight, eps), residual

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return triton_layers.silu_and_mul(gate_up)

    def row_argmax(self, logits: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        return triton_argmax.row_argmax(logits, limit)

    def signature(self) -> str:
        tiled = f" by {TILE} rows" if self._deterministic else ""
        return f"triton {triton.__version__} around {self._products.signature()}{tiled}"

    def describe(self) -> list[str]:
        return [f"norms, activation, maxima: triton {triton.__version__}"] + [
            line.replace("dense layers", "products") for line in self._products.describe()
        ]
