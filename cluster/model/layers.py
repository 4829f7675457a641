"""RMSNorm: the one layer every rank computes whole.

Knows no parallelism and no attention.
"""

from collections.abc import Iterator

from torch import Tensor

from cluster.model.parallel import Placement, TensorShard, TensorSink


class RMSNorm:
    """x / rms(x) * weight; the mean square is taken in float32."""

    def __init__(self, hidden_size: int, eps: float, where: Placement) -> None:
        self.eps = eps
        self.kernels = where.kernels
        self.weight = where.empty(hidden_size)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm(residual + x), residual + x)."""
        return self.kernels.add_rms_norm(x, residual, self.weight, self.eps)

    def shards(self, name: str) -> Iterator[TensorShard]:
        sink = TensorSink(self.weight)
        yield TensorShard(f"{name}.weight", sink.shape, 0, 0, sink)
