"""Attention of few queries over many keys: each row's keys are cut into splits, then combined.

Who computes which split is worked out on the device, from the lengths alone, in every program: the
work is even however the lengths differ, the grid depends on the number of rows only, and nothing
waits for the host. So a launch may be captured in a CUDA graph and replayed with other lengths.

    row 0  |=======|=======|=======|===|     items 0 1 2 3      the size of a split follows from
    row 1  |====|                            item  4            all the lengths together, or is
    row 2  (length 0: only pads)                                fixed where bits must not depend
    row 3  |=======|=|                       items 5 6          on the rest of the batch

Queries and the query heads of one kv head stand together in a tile of BLOCK_M lines. Rows of one
item write their output at once; the others leave partial sums.
"""

import triton
import triton.language as tl

from cluster.attention.triton.fold import averaged, fold, load_lines, nothing_folded


@triton.jit
def cut(
    seq_lens: tl.tensor,
    num_rows: tl.tensor,
    target: tl.tensor,
    ROWS_P2: tl.constexpr,
    BLOCK: tl.constexpr,
    MIN_BLOCKS: tl.constexpr,
    FIXED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """(splits of each row [ROWS_P2], the item each row's splits end before, tokens of a split).

    About `target` splits, of at least MIN_BLOCKS blocks; or splits of FIXED tokens, if not 0.
    """
    row = tl.arange(0, ROWS_P2)
    lengths = tl.load(seq_lens + row, mask=row < num_rows, other=0)
    blocks = tl.sum((lengths + BLOCK - 1) // BLOCK, 0)
    size = tl.maximum((blocks + target - 1) // target, MIN_BLOCKS) * BLOCK
    if FIXED:
        size = size * 0 + FIXED
    splits = (lengths + size - 1) // size
    return splits, tl.cumsum(splits, 0), size


@triton.jit(do_not_specialize=["num_rows", "target", "num_kv_heads", "table_stride"])
def split_kernel(
    out: tl.tensor,  # [T, N, H]
    part_sums: tl.tensor,  # [items, K, BLOCK_M, H]
    part_tops: tl.tensor,  # [items, K, BLOCK_M]: log2 of the sum of weights
    qkv: tl.tensor,
    kv_layer: tl.tensor,
    cu_seqlens_q: tl.tensor,
    seq_lens: tl.tensor,
    block_table: tl.tensor,
    num_rows: tl.tensor,
    target: tl.tensor,
    num_kv_heads: tl.tensor,
    table_stride: tl.tensor,
    side_stride: tl.tensor,
    scale: tl.tensor,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_P2: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS_P2: tl.constexpr,
    MIN_BLOCKS: tl.constexpr,
    FIXED: tl.constexpr,
) -> None:
    """Program (any, kv head): items program, program + programs, ..."""
    kv_head = tl.program_id(1)
    splits, ends, size = cut(seq_lens, num_rows, target, ROWS_P2, BLOCK_N, MIN_BLOCKS, FIXED)
    row_index = tl.arange(0, ROWS_P2)
    line, dim = tl.arange(0, BLOCK_M), tl.arange(0, HEAD_P2)
    keys = kv_layer + kv_head * HEAD
    for item in range(tl.program_id(0), tl.sum(splits, 0), tl.num_programs(0)):
        row = tl.sum((ends <= item).to(tl.int32), 0)
        num_splits = tl.sum(tl.where(row_index == row, splits, 0), 0)
        split = item - tl.sum(tl.where(row_index == row, ends - splits, 0), 0)
        length = tl.load(seq_lens + row)
        begin = tl.load(cu_seqlens_q + row)
        num_queries = tl.load(cu_seqlens_q + row + 1) - begin

        q, place, inside = load_lines(
            qkv, begin, num_queries, line, kv_head, num_kv_heads, GROUP, HEAD, HEAD_P2
        )
        sums, top, total = nothing_folded(BLOCK_M, HEAD_P2)
        sums, top, total = fold(
            sums, top, total, q, length - num_queries + line // GROUP, keys, keys + side_stride,
            block_table + row.to(tl.int64) * table_stride,
            split * size, tl.minimum(split * size + size, length),
            num_kv_heads * HEAD, scale, HEAD, PAGE, BLOCK_N, True,
        )  # fmt: skip
        sums = averaged(sums, total)
        if num_splits == 1:
            done = sums.to(out.dtype.element_ty)
            tl.store(out + place[:, None] + dim[None, :], done, mask=inside)
        else:
            part = (tl.cast(item, tl.int64) * num_kv_heads + kv_head) * BLOCK_M + line
            tl.store(part_sums + part[:, None] * HEAD + dim[None, :], sums, mask=inside)
            tops = tl.where(total > 0.0, top + tl.log2(total), -float("inf"))
            tl.store(part_tops + part, tops, mask=line // GROUP < num_queries)


@triton.jit(do_not_specialize=["num_rows", "target", "num_kv_heads"])
def combine_kernel(
    out: tl.tensor,
    part_sums: tl.tensor,
    part_tops: tl.tensor,
    cu_seqlens_q: tl.tensor,
    seq_lens: tl.tensor,
    num_rows: tl.tensor,
    target: tl.tensor,
    num_kv_heads: tl.tensor,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_P2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ROWS_P2: tl.constexpr,
    MIN_BLOCKS: tl.constexpr,
    FIXED: tl.constexpr,
) -> None:
    """Program (row, line of a tile, kv head): its splits' sums in order; zeros for padding."""
    row, line, kv_head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits, ends, _ = cut(seq_lens, num_rows, target, ROWS_P2, BLOCK_N, MIN_BLOCKS, FIXED)
    mine = tl.arange(0, ROWS_P2) == row
    num_splits = tl.sum(tl.where(mine, splits, 0), 0)
    begin = tl.load(cu_seqlens_q + row)
    written = num_splits == 1
    if written | (line // GROUP >= tl.load(cu_seqlens_q + row + 1) - begin):
        return
    item = tl.sum(tl.where(mine, ends - splits, 0), 0)
    dim, lane = tl.arange(0, HEAD_P2), tl.arange(0, BLOCK_S)
    sums = tl.zeros([HEAD_P2], tl.float32)
    top, total = -float("inf"), 0.0
    for first in range(0, num_splits, BLOCK_S):
        there = first + lane < num_splits
        part = ((item + first + lane).to(tl.int64) * num_kv_heads + kv_head) * BLOCK_M + line
        tops = tl.load(part_tops + part, mask=there, other=-float("inf"))
        inside = there[:, None] & (dim < HEAD)[None, :]
        parts = tl.load(part_sums + part[:, None] * HEAD + dim[None, :], mask=inside, other=0.0)
        higher = tl.maximum(top, tl.max(tops, 0))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weights, fade = tl.exp2(tops - base), tl.exp2(top - base)
        sums = sums * fade + tl.sum(parts * weights[:, None], 0)
        total = total * fade + tl.sum(weights, 0)
        top = higher
    sums = sums / tl.where(total > 0.0, total, 1.0)
    token = (begin + line // GROUP).to(tl.int64)
    place = (token * num_kv_heads * GROUP + kv_head * GROUP + line % GROUP) * HEAD
    tl.store(out + place + dim, sums.to(out.dtype.element_ty), mask=dim < HEAD)
