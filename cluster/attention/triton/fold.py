"""The heart of both attention kernels: fold a span of stored keys into running softmax sums.

Owns the tile of queries, and the walk over a row's pages. Sums are float32; weights are powers of
two, so the scale holds log2(e). Positions outside the span are never read: what stale slots hold
cannot matter.
"""

import triton
import triton.language as tl


@triton.jit
def load_lines(
    qkv: tl.tensor,
    begin: tl.tensor,  # the request's first token
    num_queries: tl.tensor,
    line: tl.tensor,  # [M]: query * GROUP + query head of the kv head
    kv_head: tl.tensor,
    num_kv_heads: tl.tensor,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_P2: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """(queries [M, H], where each line's output begins [M], what of the tile is there [M, H])."""
    dim = tl.arange(0, HEAD_P2)
    num_heads = num_kv_heads * GROUP
    token = (begin + line // GROUP).to(tl.int64)
    head = kv_head * GROUP + line % GROUP
    inside = (line // GROUP < num_queries)[:, None] & (dim < HEAD)[None, :]
    source = (token * (num_heads + 2 * num_kv_heads) + head) * HEAD
    q = tl.load(qkv + source[:, None] + dim[None, :], mask=inside, other=0.0)
    return q, (token * num_heads + head) * HEAD, inside


@triton.jit
def nothing_folded(
    BLOCK_M: tl.constexpr, HEAD_P2: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """(sums, top, total) before the first span."""
    sums = tl.zeros([BLOCK_M, HEAD_P2], tl.float32)
    return sums, tl.full([BLOCK_M], -float("inf"), tl.float32), tl.zeros([BLOCK_M], tl.float32)


@triton.jit
def averaged(sums: tl.tensor, total: tl.tensor) -> tl.tensor:
    """What the spans come to; zeros for a query that has seen nothing."""
    return sums / tl.where(total > 0.0, total, 1.0)[:, None]


@triton.jit
def slots_of(
    table: tl.tensor, first: tl.tensor, stop: tl.tensor, PAGE: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """Slots of the positions first ... first + BLOCK; those from `stop` on mean nothing.

    `table`: the row's pages. `first` is a multiple of BLOCK and below `stop`.
    """
    lane = tl.arange(0, BLOCK)
    if PAGE >= BLOCK:
        slots = tl.load(table + first // PAGE).to(tl.int64) * PAGE + first % PAGE + lane
    else:
        pages = tl.load(table + (first + lane) // PAGE, mask=first + lane < stop, other=0)
        slots = pages.to(tl.int64) * PAGE + lane % PAGE
    return slots


@triton.jit
def fold(
    sums: tl.tensor,  # [M, H]: weighted values
    top: tl.tensor,  # [M]: the largest score yet
    total: tl.tensor,  # [M]: weights
    q: tl.tensor,  # [M, H]
    last_seen: tl.tensor,  # [M]: the last position a query sees
    keys: tl.tensor,  # this head's key and value in slot 0
    values: tl.tensor,
    table: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    slot_stride: tl.tensor,
    scale: tl.tensor,
    HEAD: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Positions start ... stop; `start` is a multiple of BLOCK.

    Unless MASKED, `stop` is one too and every query sees the whole span.
    """
    dim = tl.arange(0, q.shape[1])
    lane = tl.arange(0, BLOCK)
    for first in range(start, stop, BLOCK):
        slots = slots_of(table, first, stop, PAGE, BLOCK)
        offsets = slots[:, None] * slot_stride + dim[None, :]
        stored = tl.full([BLOCK, q.shape[1]], True, tl.int1)
        if MASKED:
            stored = stored & (first + lane < stop)[:, None]
        if q.shape[1] != HEAD:
            stored = stored & (dim < HEAD)[None, :]
        k = tl.load(keys + offsets, mask=stored, other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if MASKED:
            position = (first + lane)[None, :]
            seen = (position <= last_seen[:, None]) & (position < stop)
            scores = tl.where(seen, scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)  # a query that has seen nothing
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(top - base)
        top = higher
        total = total * fade + tl.sum(weights, 1)
        v = tl.load(values + offsets, mask=stored, other=0.0).to(q.dtype)
        sums = sums * fade[:, None]
        sums += tl.dot(weights.to(q.dtype), v, input_precision="ieee")
    return sums, top, total
