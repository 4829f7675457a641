"""NativeAttention: paged attention by the compiled extension, on CPUs.

Owns the choice among the extension's attention variants. Results are bound to nothing but a query
and what it sees: keys are taken in tiles of 256 at fixed positions, every tile is computed alone
and tiles are merged in order. So neighbours in the batch, the chunking of a prompt, the physical
place of blocks and the number of threads never change a bit; but the variant `amx` computes chunks
of few and of many queries with different instructions, so there chunking can.
"""

from typing import Any

from torch import Tensor

from cluster.attention.backend import AttentionMetadata, RotaryTable


class NativeAttention:
    """The extension's backend; pages of any power of two."""

    name = "native"
    captured_queries = 0

    def __init__(self, native: Any, block_size: int, variant: int) -> None:
        """`native`: the loaded extension; `variant`: an index into its `attention_variants`.

        Raises:
            ValueError: the block size is not a power of two.
        """
        if block_size < 1 or block_size & (block_size - 1):
            raise ValueError(f"block_size: {block_size} is not a power of two; 16 and 64 work")
        self._native = native
        self._block_size = block_size
        self._variant = variant
        self.signature = f"native {native.attention_variants()[variant]}"

    def plan(self, metadata: AttentionMetadata) -> "NativePlan":
        """Hand the step over; it is cut into pieces of work when the first layer calls."""
        step = self._native.PagedAttention(
            metadata.cu_seqlens_q,
            metadata.seq_lens_k,
            metadata.block_table,
            metadata.positions,
            metadata.slot_mapping,
            self._block_size,
            self._variant,
        )
        return NativePlan(step)


class NativePlan:
    """One step in the extension."""

    def __init__(self, step: Any) -> None:
        self._step = step

    def attend(
        self, kv_layer: Tensor, qkv: Tensor, rotary: RotaryTable, wanted: Tensor | None = None
    ) -> Tensor:
        """Turn, store, attend: [T, N + 2K, H] (overwritten) -> [T, N, H]."""
        out: Tensor = self._step.attend(kv_layer, qkv, rotary.cos, rotary.sin, wanted)
        return out
