"""The highest logit of every row as two Triton kernels; nothing waits for the host.

Owns the kernels. One row of a large vocabulary would keep one multiprocessor busy and all others
waiting, so parts of rows come first:

    logits   [ part 0 | part 1 | ... ]      highest, its first place, and whether all numbers were
    parts    [ v, i, h | v, i, h | ... ]    finite; then the same over the parts
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PART = 4096


@triton.jit
def _parts(
    logits: tl.tensor,
    values: tl.tensor,
    places: tl.tensor,
    healthy: tl.tensor,
    stride: int,
    limit: int,
    parts: int,
    PART: tl.constexpr,
) -> None:
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = part * PART + tl.arange(0, PART)
    inside = column < limit
    number = tl.load(logits + row * stride + column, mask=inside, other=-float("inf"))
    number = number.to(tl.float32)
    broken = (number != number) | (number == float("inf"))
    highest = tl.max(tl.where(broken, -float("inf"), number), 0)
    place = tl.min(tl.where(number == highest, column, limit), 0)
    at = row * parts + part
    tl.store(values + at, highest)
    tl.store(places + at, place)
    tl.store(healthy + at, 1 - tl.max(broken.to(tl.int32), 0))


@triton.jit
def _whole(
    values: tl.tensor,
    places: tl.tensor,
    healthy: tl.tensor,
    value: tl.tensor,
    place: tl.tensor,
    health: tl.tensor,
    parts: int,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BLOCK)
    inside = part < parts
    number = tl.load(values + row * parts + part, mask=inside, other=-float("inf"))
    found = tl.load(places + row * parts + part, mask=inside, other=2147483647)
    good = tl.load(healthy + row * parts + part, mask=inside, other=1)
    highest = tl.max(number, 0)
    tl.store(value + row, highest)
    tl.store(place + row, tl.min(tl.where(number == highest, found, 2147483647), 0).to(tl.int64))
    tl.store(health + row, tl.min(good, 0).to(tl.int1))


def row_argmax(logits: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `Kernels.row_argmax` asks for."""
    rows, parts = logits.shape[0], triton.cdiv(limit, PART)
    where = logits.device
    value = torch.empty(rows, dtype=torch.float32, device=where)
    place = torch.empty(rows, dtype=torch.int64, device=where)
    health = torch.empty(rows, dtype=torch.bool, device=where)
    if rows:
        values = torch.empty((rows, parts), dtype=torch.float32, device=where)
        places = torch.empty((rows, parts), dtype=torch.int32, device=where)
        healthy = torch.empty((rows, parts), dtype=torch.int32, device=where)
        _parts[(rows, parts)](
            logits, values, places, healthy, logits.stride(0), limit, parts, PART=PART, num_warps=4
        )
        block = triton.next_power_of_2(parts)
        _whole[(rows,)](
            values, places, healthy, value, place, health, parts, BLOCK=block, num_warps=1
        )
    return value, place, health
