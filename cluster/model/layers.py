"""The small layers every rank computes whole: RMSNorm and rotary positions.

Knows no parallelism and no attention.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cluster.attention.backend import RotaryTable
from cluster.model.parallel import Placement, TensorShard, TensorSink


class RMSNorm(nn.Module):
    """x / rms(x) * weight; the mean square is taken in float32."""

    def __init__(self, hidden_size: int, eps: float, where: Placement) -> None:
        super().__init__()
        self.eps = eps
        self.kernels = where.kernels
        self.weight = where.empty(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm(residual + x), residual + x)."""
        return self.kernels.add_rms_norm(x, residual, self.weight, self.eps)

    def shards(self, name: str) -> Iterator[TensorShard]:
        sink = TensorSink(self.weight.data)
        yield TensorShard(f"{name}.weight", sink.shape, 0, 0, sink)


class Rotary:
    """Rotary position angles, Qwen2 style: element i turns with element i + H/2.

    Tables are float32 [positions, H/2] whatever the model's dtype: bfloat16 cannot count to 300.
    """

    def __init__(
        self, head_dim: int, theta: float, max_position: int, device: torch.device
    ) -> None:
        exponent = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
        positions = torch.arange(max_position, device=device, dtype=torch.float32)
        angles = torch.outer(positions, 1.0 / theta**exponent)
        self.table = RotaryTable(angles.cos(), angles.sin())
