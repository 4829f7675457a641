"""Drawing among the few likeliest ids as one Triton kernel: top-k, top-p, min-p and the noise.

Owns the kernel. What it draws is what `draw_offered` of the worker draws, with the noise of
`worker.noise`, which say why; sums here are a GPU's, so a row on the edge of top_p may differ.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cluster.kernels.triton_layers import warps


@triton.jit
def _mix(x: tl.tensor) -> tl.tensor:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _draw(
    values: tl.tensor,
    ids: tl.tensor,
    floors: tl.tensor,
    lse: tl.tensor,
    top_p: tl.tensor,
    min_p_log: tl.tensor,
    top_k: tl.tensor,
    keys: tl.tensor,
    tokens: tl.tensor,
    covered: tl.tensor,
    width: int,
    unlimited: int,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(values + row * width + column, mask=inside, other=-float("inf"))
    token = tl.load(ids + row * width + column, mask=inside, other=0)
    floor, k = tl.load(floors + row), tl.load(top_k + row)
    mass = tl.where(inside, tl.exp(value - tl.load(lse + row)), 0.0)
    below = tl.cumsum(mass, 0)
    at_k = tl.sum(tl.where(column == tl.minimum(k, width) - 1, below, 0.0), 0)
    enough = tl.load(top_p + row) * tl.where(k <= width, at_k, 1.0)
    count = tl.sum((inside & (below - mass < enough)).to(tl.int64), 0)
    least = tl.max(value, 0) + tl.load(min_p_log + row)
    count = tl.minimum(count, tl.sum((inside & (value >= least)).to(tl.int64), 0))
    count = tl.maximum(tl.minimum(count, k), 1)
    cutoff = tl.max(tl.where(column == count - 1, value, -float("inf")), 0)
    complete = tl.sum((inside & (value > floor)).to(tl.int64), 0)
    whole = floor == -float("inf")
    suffices = whole | ((count < complete) & ((k == unlimited) | (k <= complete)))
    key = tl.load(keys + row).to(tl.uint64, bitcast=True)
    bits = _mix((token + 1).to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15 + key)
    uniform = ((bits >> 12).to(tl.int64).to(tl.float64) + 0.5) * 2.220446049250313e-16
    score = value.to(tl.float64) - tl.log(-tl.log(uniform))
    score = tl.where(inside & (value >= cutoff), score, -float("inf"))
    best = tl.min(tl.where(score == tl.max(score, 0), column, BLOCK), 0)
    tl.store(tokens + row, tl.sum(tl.where(column == best, token, 0), 0))
    tl.store(covered + row, suffices)


def draw_offered(
    offer: tuple[Tensor, Tensor, Tensor],
    lse: Tensor,
    filters: tuple[Tensor, Tensor, Tensor, Tensor],
    unlimited: int,
) -> tuple[Tensor, Tensor]:
    """(ids int64 [n], whether the offer sufficed bool [n]); nothing waits for the host.

    Args:
        offer: values float32 [n, C] descending, ids int64 [n, C], floor float32 [n]: lower values,
            and equals, may be missing.
        lse: float32 [n], of the whole row.
        filters: top_p and log of min_p float32 [n], top_k and keys int64 [n].
        unlimited: the top_k that is none.
    """
    values, ids, floor = offer
    rows, width = values.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=values.device)
    covered = torch.empty(rows, dtype=torch.bool, device=values.device)
    if rows:
        block = triton.next_power_of_2(width)
        _draw[(rows,)](
            values.contiguous(),
            ids.contiguous(),
            floor.contiguous(),
            lse.contiguous(),
            *filters,
            tokens,
            covered,
            width,
            unlimited,
            BLOCK=block,
            num_warps=warps(block),
        )
    return tokens, covered
