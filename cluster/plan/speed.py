"""Speed floors: the least time a decode step or a prompt can take on given devices.

Owns the arithmetic of bytes read, numbers multiplied and ranks that wait for each other. What an
engine reaches is a share of it. Knows no names of devices.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.plan.memory import BF16, ModelShape, Precision, kv_bytes_per_token, matrix_bytes

Points = Sequence[tuple[float, float]]
"""(bytes of one all-reduce, seconds), in growing order."""


@dataclass(frozen=True, slots=True)
class Link:
    """How ranks add up: the time of one all-reduce by its size, per number of ranks."""

    points: Mapping[int, Points]

    def all_reduce_seconds(self, tp: int, num_bytes: float) -> float:
        """Interpolated between the known sizes, and beyond the last at the last slope.

        More ranks than are known take as long as the most that are.
        """
        if tp == 1:
            return 0.0
        points = self.points[
            min((size for size in self.points if size >= tp), default=max(self.points))
        ]
        first, *_ = points
        if num_bytes <= first[0]:
            return first[1]
        segments = list(itertools.pairwise(points))
        (x0, y0), (x1, y1) = next((s for s in segments if num_bytes <= s[1][0]), segments[-1])
        return y0 + (y1 - y0) * (num_bytes - x0) / (x1 - x0)


@dataclass(frozen=True, slots=True)
class Machine:
    """What one rank computes with."""

    bytes_per_second: float
    flops: float
    link: Link | None = None
    """None: adding up over ranks takes no time."""


def decode_seconds(
    shape: ModelShape,
    machine: Machine,
    tp: int,
    *,
    batch: int,
    context: int,
    precision: Precision = BF16,
) -> float:
    """The least time of a decode step: reading weights and KV, or computing; then all-reduces.

    Args:
        batch: requests in the step, each with `context` tokens in its cache.
    """
    read = matrix_bytes(shape, precision) / tp
    read += batch * context * kv_bytes_per_token(shape, tp, precision.kv)
    compute = 2 * batch * shape.linear_params / tp / machine.flops
    waits = _all_reduces(shape, machine, tp, rows=batch, precision=precision)
    return max(read / machine.bytes_per_second, compute) + waits


def prefill_seconds(
    shape: ModelShape,
    machine: Machine,
    tp: int,
    *,
    length: int,
    precision: Precision = BF16,
) -> float:
    """The least time of a prompt: its products, causal attention included, then all-reduces."""
    linears = shape.num_layers * shape.layer_linear_params
    products = 2 * length * linears + 2 * shape.vocab_size * shape.hidden_size
    attention = 2 * length * length * shape.num_heads * shape.head_dim * shape.num_layers
    compute = (products + attention) / tp / machine.flops
    read = linears * precision.linear / tp / machine.bytes_per_second
    return max(compute, read) + _all_reduces(shape, machine, tp, rows=length, precision=precision)


def _all_reduces(
    shape: ModelShape, machine: Machine, tp: int, *, rows: int, precision: Precision
) -> float:
    """Of [rows, hidden]: two a layer and one for the embedding."""
    if machine.link is None or tp == 1:
        return 0.0
    num_bytes = rows * shape.hidden_size * precision.other
    return (2 * shape.num_layers + 1) * machine.link.all_reduce_seconds(tp, num_bytes)
