"""FlashAttention: paged attention by the library of that name, on GPUs.

Owns what its two generations ask of a call; which one is there, `selection` has found out. Turning
and storing are the Triton kernel's, as the library's own wants keys apart. No wish for `wanted`
rows is heard: to know them the host would have to wait.

    2   a mixed step takes two calls: rows of one query by `flash_attn_with_kvcache`, chunks by
        `flash_attn_varlen_func`; pages are multiples of 256
    3   one call takes all; any page
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.attention.backend import AttentionMetadata, HeadShape, RotaryTable
from cluster.attention.triton.rotary_store import rotary_store

FLASH2_PAGE = 256


class Flash2Attention:
    """The package `flash-attn` 2.x."""

    name = "flash_attn"
    captured_queries = 1

    def __init__(
        self, library: Any, block_size: int, shape: HeadShape, deterministic: bool
    ) -> None:
        """`library`: the module `flash_attn`.

        Raises:
            ValueError: its kernels cannot page so.
        """
        if block_size % FLASH2_PAGE:
            raise ValueError(
                f"block_size: {block_size} is no multiple of {FLASH2_PAGE}, as flash_attn 2 needs; "
                "256 works, or attention_backend: triton"
            )
        self.library = library
        self.shape = shape
        self.num_splits = int(deterministic)
        splits = "1 split" if deterministic else "splits by load"
        self.signature = f"flash_attn {library.__version__} {splits}"

    def plan(self, metadata: AttentionMetadata) -> "Flash2Plan":
        """Cut the step behind its rows of one query."""
        return Flash2Plan(self, metadata)


class Flash2Plan:
    """Two calls a layer, or one."""

    def __init__(self, backend: Flash2Attention, metadata: AttentionMetadata) -> None:
        self._backend = backend
        self._metadata = metadata
        lengths = metadata.seq_lens_k[metadata.num_decode :]
        self._borders_q = metadata.cu_seqlens_q[metadata.num_decode :] - metadata.num_decode
        self._borders_k = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))

    def attend(
        self, kv_layer: Tensor, qkv: Tensor, rotary: RotaryTable, wanted: Tensor | None = None
    ) -> Tensor:
        """Turn, store, attend: [T, N + 2K, H] (queries turned in place) -> [T, N, H]."""
        backend, num_decode = self._backend, self._metadata.num_decode
        rotary_store(self._metadata, backend.shape, kv_layer, qkv, rotary)
        q = qkv[:, : backend.shape.num_heads]
        if num_decode == len(q):
            return self._decode(kv_layer, q)
        if not num_decode:
            return self._prefill(kv_layer, q)
        decoded = self._decode(kv_layer, q[:num_decode])
        return torch.cat((decoded, self._prefill(kv_layer, q[num_decode:])))

    def _decode(self, kv_layer: Tensor, q: Tensor) -> Tensor:
        out: Tensor = self._backend.library.flash_attn_with_kvcache(
            q.unsqueeze(1),
            kv_layer[0],
            kv_layer[1],
            cache_seqlens=self._metadata.seq_lens_k[: len(q)],
            block_table=self._metadata.block_table[: len(q)],
            causal=True,
            num_splits=self._backend.num_splits,
        )
        return out.squeeze(1)

    def _prefill(self, kv_layer: Tensor, q: Tensor) -> Tensor:
        metadata = self._metadata
        out: Tensor = self._backend.library.flash_attn_varlen_func(
            q,
            kv_layer[0],
            kv_layer[1],
            cu_seqlens_q=self._borders_q,
            cu_seqlens_k=self._borders_k,
            max_seqlen_q=metadata.max_q,
            max_seqlen_k=metadata.max_k,
            causal=True,
            block_table=metadata.block_table[metadata.num_decode :],
        )
        return out


class Flash3Attention:
    """FlashAttention 3, for Hopper: the module `flash_attn_interface`."""

    name = "flash_attn"
    captured_queries = 64
    """Of drafts; nothing in it depends on their number."""

    def __init__(self, library: Any, shape: HeadShape, deterministic: bool) -> None:
        """`library`: the module `flash_attn_interface`."""
        self.library = library
        self.shape = shape
        self.num_splits = int(deterministic)
        self.signature = f"flash_attn 3 {'1 split' if deterministic else 'splits by load'}"

    def plan(self, metadata: AttentionMetadata) -> "Flash3Plan":
        """Nothing is left to prepare."""
        return Flash3Plan(self, metadata)


class Flash3Plan:
    """One call a layer."""

    def __init__(self, backend: Flash3Attention, metadata: AttentionMetadata) -> None:
        self._backend = backend
        self._metadata = metadata

    def attend(
        self, kv_layer: Tensor, qkv: Tensor, rotary: RotaryTable, wanted: Tensor | None = None
    ) -> Tensor:
        """Turn, store, attend: [T, N + 2K, H] (queries turned in place) -> [T, N, H]."""
        backend, metadata = self._backend, self._metadata
        rotary_store(metadata, backend.shape, kv_layer, qkv, rotary)
        out: Tensor = backend.library.flash_attn_with_kvcache(
            qkv[:, : backend.shape.num_heads],
            kv_layer[0],
            kv_layer[1],
            cache_seqlens=metadata.seq_lens_k,
            page_table=metadata.block_table,
            cu_seqlens_q=metadata.cu_seqlens_q,
            max_seqlen_q=metadata.max_q,
            causal=True,
            num_splits=backend.num_splits,
        )
        return out
