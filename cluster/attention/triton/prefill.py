"""Attention of many queries: chunks of prompts, packed one after the other, over what is stored.

Tiles hold BLOCK_M lines: queries and the query heads of one kv head together, so that keys are read
once for the group. Which request a program's tile belongs to is worked out on the device. Blocks
that every query of a tile sees whole need no mask; the last ones do.

    keys  0 ......................... length
    tile 0   |===========|==\\
    tile 1   |===========|=====\\          = no mask   \\ masked by position
"""

import triton
import triton.language as tl

from cluster.attention.triton.fold import averaged, fold, load_lines, nothing_folded


@triton.jit
def tile_of(
    program: tl.tensor,
    cu_seqlens_q: tl.tensor,
    first_row: tl.tensor,
    num_rows: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROWS_P2: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """(row, tile of the row) of a program; (num_rows, any) of one without work."""
    index = tl.arange(0, ROWS_P2)
    there = (index >= first_row) & (index < num_rows)
    counts = tl.load(cu_seqlens_q + index + 1, mask=there, other=0)
    counts -= tl.load(cu_seqlens_q + index, mask=there, other=0)
    ends = tl.cumsum((counts * GROUP + BLOCK_M - 1) // BLOCK_M, 0)
    row = tl.sum(((ends <= program) & (index < num_rows)).to(tl.int32), 0)
    return row, tl.sum(tl.where(index == row, ends, 0), 0) - 1 - program


@triton.jit(do_not_specialize=["first_row", "num_rows", "num_kv_heads", "table_stride"])
def prefill_kernel(
    out: tl.tensor,  # [T, N, H]
    qkv: tl.tensor,
    kv_layer: tl.tensor,
    cu_seqlens_q: tl.tensor,
    seq_lens: tl.tensor,
    block_table: tl.tensor,
    first_row: tl.tensor,  # rows before it are somebody else's
    num_rows: tl.tensor,
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
) -> None:
    """Program (tile, kv head); of a request the tile with the most keys first."""
    row, tile = tile_of(
        tl.program_id(0), cu_seqlens_q, first_row, num_rows, GROUP, BLOCK_M, ROWS_P2
    )
    if row == num_rows:
        return
    begin = tl.load(cu_seqlens_q + row)
    num_queries = tl.load(cu_seqlens_q + row + 1) - begin
    length = tl.load(seq_lens + row)

    kv_head = tl.program_id(1)
    line, dim = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, HEAD_P2)
    q, place, inside = load_lines(
        qkv, begin, num_queries, line, kv_head, num_kv_heads, GROUP, HEAD, HEAD_P2
    )
    position = length - num_queries + line // GROUP
    lowest = length - num_queries + tile * BLOCK_M // GROUP
    highest = tl.minimum(length - num_queries + (tile * BLOCK_M + BLOCK_M - 1) // GROUP, length - 1)
    whole = (lowest + 1) // BLOCK_N * BLOCK_N
    keys = kv_layer + kv_head * HEAD
    table = block_table + row.to(tl.int64) * table_stride
    sums, top, total = nothing_folded(BLOCK_M, HEAD_P2)
    sums, top, total = fold(
        sums, top, total, q, position, keys, keys + side_stride, table, 0, whole,
        num_kv_heads * HEAD, scale, HEAD, PAGE, BLOCK_N, False,
    )  # fmt: skip
    sums, top, total = fold(
        sums, top, total, q, position, keys, keys + side_stride, table, whole, highest + 1,
        num_kv_heads * HEAD, scale, HEAD, PAGE, BLOCK_N, True,
    )  # fmt: skip
    done = averaged(sums, total).to(out.dtype.element_ty)
    tl.store(out + place[:, None] + dim[None, :], done, mask=inside)
