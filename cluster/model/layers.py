"""The small layers every rank computes whole: RMSNorm, rotary positions, SiLU times gate.

Knows no parallelism and no attention.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.model.parallel import Placement, TensorShard


class RMSNorm(nn.Module):
    """x / rms(x) * weight; the mean square is taken in float32."""

    def __init__(self, hidden_size: int, eps: float, where: Placement) -> None:
        super().__init__()
        self.eps = eps
        self.weight = where.empty(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def shards(self, name: str) -> Iterator[TensorShard]:
        yield TensorShard(f"{name}.weight", tuple(self.weight.shape), 0, 0, self.weight.data)


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
        self.cos = angles.cos()
        self.sin = angles.sin()

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[T] -> (cos, sin) [T, 1, H]; sin carries the minus of the first half."""
        cos, sin = self.cos[positions], self.sin[positions]
        return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn [T, heads, H] by its positions' angles."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    return (x * cos + swapped * sin).to(x.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """[T, 2F] = [gate | up] -> silu(gate) * up [T, F]."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up
