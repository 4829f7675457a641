"""TritonAttention: the launches of one step.

Owns the choice of kernel by the queries of a row, the grids and the partial sums. Reads no tensor
on the host, so a plan waits for nothing, and one of short rows alone may be captured.

    rows of one query ............ splits of keys, GROUP lines a tile
    all rows short (drafts) ...... splits of keys, SHORT_LINES lines a tile
    chunks of prompts ............ prefill
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.attention.backend import AttentionMetadata, HeadShape, RotaryTable
from cluster.attention.triton import sizes
from cluster.attention.triton.prefill import prefill_kernel
from cluster.attention.triton.rotary_store import rotary_store
from cluster.attention.triton.sizes import KernelSizes, power_of_two
from cluster.attention.triton.split_kv import combine_kernel, split_kernel

MIN_PAGE = 16


class TritonAttention:
    """The backend of this package's kernels; pages of any power of two from 16 on."""

    name = "triton"

    def __init__(
        self,
        block_size: int,
        shape: HeadShape,
        max_rows: int,
        capability: tuple[int, int],
        num_processors: int,
        deterministic: bool,
    ) -> None:
        """`num_processors`: the device's multiprocessors; `max_rows`: of one step.

        Raises:
            ValueError: pages of this size are not served.
        """
        if block_size < MIN_PAGE or block_size & (block_size - 1):
            raise ValueError(
                f"block_size: {block_size} does not fit the triton kernels; use a power of two "
                f"from {MIN_PAGE} on, such as 16 or 64"
            )
        self.block_size = block_size
        self.shape = shape
        self.captured_queries = max(1, sizes.SHORT_LINES // shape.group)
        self.capability = capability
        self.rows_p2 = power_of_two(max_rows)
        self.fixed_split = sizes.FIXED_SPLIT if deterministic else 0
        programs = sizes.WAVES * num_processors // shape.num_kv_heads
        self.target_splits = min(max(programs, 1), sizes.MAX_SPLITS)
        cut = f"splits of {self.fixed_split}" if deterministic else f"{self.target_splits} splits"
        self.signature = f"triton {cut}"
        self._room: Tensor | None = None

    def plan(self, metadata: AttentionMetadata) -> "TritonPlan":
        """Choose kernels and grids, and make room for partial sums."""
        num_rows = len(metadata.seq_lens_k)
        if num_rows > self.rows_p2:
            raise ValueError(f"{num_rows} rows in a step planned for {self.rows_p2} at most")
        short = metadata.max_q * self.shape.group <= sizes.SHORT_LINES
        num_split = num_rows if short else metadata.num_decode
        max_q = metadata.max_q if short else 1
        return TritonPlan(self, metadata, self._splits(metadata, num_split, max_q))

    def _splits(self, metadata: AttentionMetadata, num_rows: int, max_q: int) -> "_Splits | None":
        if not num_rows:
            return None
        shape, device = self.shape, metadata.seq_lens_k.device
        tile = sizes.split_sizes(shape, self.capability, max_q)
        items = num_rows + self.target_splits
        if self.fixed_split:
            items = num_rows * -(-metadata.max_k // self.fixed_split)
        lines = (items, shape.num_kv_heads, tile.block_m)
        num_tops = math.prod(lines)
        room = self._room_of(num_tops * (shape.head_dim + 1), device)
        return _Splits(
            num_rows,
            tile,
            max_q * shape.group,
            min(items, num_rows + self.target_splits),
            room[num_tops:].view(*lines, shape.head_dim),
            room[:num_tops].view(lines),
        )

    def _room_of(self, numbers: int, device: torch.device) -> Tensor:
        """Of float32, shared by all plans: they are followed one after the other."""
        if self._room is None or len(self._room) < numbers:
            self._room = None  # the smaller one goes first
            self._room = torch.empty(numbers, dtype=torch.float32, device=device)
        return self._room[:numbers]


class _Splits(NamedTuple):
    """The leading rows, and how their keys are cut."""

    num_rows: int
    tile: KernelSizes
    lines: int
    programs: int
    sums: Tensor
    tops: Tensor


class TritonPlan:
    """One step's launches, the same for every layer."""

    def __init__(
        self, backend: TritonAttention, metadata: AttentionMetadata, splits: _Splits | None
    ) -> None:
        self._backend = backend
        self._metadata = metadata
        self._splits = splits
        shape = backend.shape
        self._scale = math.log2(math.e) / math.sqrt(shape.head_dim)
        self._head = {"HEAD": shape.head_dim, "HEAD_P2": max(16, power_of_two(shape.head_dim))}

    def attend(
        self, kv_layer: Tensor, qkv: Tensor, rotary: RotaryTable, wanted: Tensor | None = None
    ) -> Tensor:
        """Turn, store, attend: [T, N + 2K, H] (queries turned in place) -> [T, N, H].

        `wanted` spares nothing here: to know its rows the host would have to wait.
        """
        shape = self._backend.shape
        rotary_store(self._metadata, shape, kv_layer, qkv, rotary)
        out = qkv.new_empty((len(qkv), shape.num_heads, shape.head_dim))
        first_chunk = 0
        if self._splits is not None:
            self._attend_split(self._splits, out, kv_layer, qkv)
            first_chunk = self._splits.num_rows
        if first_chunk < len(self._metadata.seq_lens_k):
            self._attend_chunks(first_chunk, out, kv_layer, qkv)
        return out

    def _attend_split(self, splits: _Splits, out: Tensor, kv_layer: Tensor, qkv: Tensor) -> None:
        backend, metadata, tile = self._backend, self._metadata, splits.tile
        kv_heads = backend.shape.num_kv_heads
        cut = {
            "GROUP": backend.shape.group,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "ROWS_P2": backend.rows_p2,
            "MIN_BLOCKS": sizes.MIN_SPLIT_BLOCKS,
            "FIXED": backend.fixed_split,
            **self._head,
        }
        split_kernel[(splits.programs, kv_heads)](
            out,
            splits.sums,
            splits.tops,
            qkv,
            kv_layer,
            metadata.cu_seqlens_q,
            metadata.seq_lens_k,
            metadata.block_table,
            splits.num_rows,
            backend.target_splits,
            kv_heads,
            metadata.block_table.stride(0),
            kv_layer.stride(0),
            self._scale,
            PAGE=backend.block_size,
            **cut,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            enable_fp_fusion=True,
        )
        combine_kernel[(splits.num_rows, splits.lines, kv_heads)](
            out,
            splits.sums,
            splits.tops,
            metadata.cu_seqlens_q,
            metadata.seq_lens_k,
            splits.num_rows,
            backend.target_splits,
            kv_heads,
            BLOCK_S=sizes.COMBINED_AT_ONCE,
            **cut,
            num_warps=4,
            enable_fp_fusion=True,
        )

    def _attend_chunks(self, first_row: int, out: Tensor, kv_layer: Tensor, qkv: Tensor) -> None:
        backend, metadata = self._backend, self._metadata
        shape, num_rows = backend.shape, len(metadata.seq_lens_k)
        tile = sizes.prefill_sizes(shape, backend.capability)
        tokens = len(qkv) - first_row
        tiles = -(-tokens * shape.group // tile.block_m) + num_rows - first_row
        prefill_kernel[(tiles, shape.num_kv_heads)](
            out,
            qkv,
            kv_layer,
            metadata.cu_seqlens_q,
            metadata.seq_lens_k,
            metadata.block_table,
            first_row,
            num_rows,
            shape.num_kv_heads,
            metadata.block_table.stride(0),
            kv_layer.stride(0),
            self._scale,
            GROUP=shape.group,
            PAGE=backend.block_size,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            ROWS_P2=backend.rows_p2,
            **self._head,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            enable_fp_fusion=True,
        )
