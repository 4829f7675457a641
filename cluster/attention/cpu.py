"""TorchAttention: paged attention in plain torch; the reference, and the CPU's own backend.

Runs on any device. Decode rows are computed together: their pages are gathered, padded to the
longest of their bucket and masked. Prefill chunks are computed one request at a time.

    pages  2 |##|          rows of like length share a bucket (a power of two of pages), so that
           2 |##|          padding never costs more than the work itself
           9 |#########|   <- a bucket of its own
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.attention.backend import AttentionMetadata

MASK_ELEMENTS = 1 << 22
"""Largest mask of one prefill tile (16 MiB in float32)."""


class _Bucket(NamedTuple):
    """Decode rows of like length."""

    rows: Tensor | None
    """None: all decode rows, in order."""
    pages: Tensor
    """int32 [b * P], row after row."""
    num_rows: int
    max_k: int
    mask: Tensor | None
    """[b, 1, 1, max_k]: 0 or -inf; None: nothing to hide."""


class _Chunk(NamedTuple):
    """The queries of one request."""

    start: int
    stop: int
    pages: Tensor
    num_k: int
    mask: Tensor | None
    """[queries, num_k]; None: plain causal, or too large to keep (see `_prefill`)."""


class TorchAttention:
    """The plain-torch backend; pages of any size."""

    name = "cpu"
    capture_ok = False

    def __init__(self, block_size: int, dtype: torch.dtype) -> None:
        """`dtype` of queries, keys and values."""
        self.block_size = block_size
        self.dtype = dtype

    def plan(self, metadata: AttentionMetadata) -> "TorchPlan":
        """Sort the step's rows into buckets and chunks and build their masks."""
        lengths = metadata.seq_lens_k.tolist()
        return TorchPlan(
            metadata.slot_mapping,
            self._buckets(metadata, lengths[: metadata.num_decode]),
            self._chunks(metadata, lengths),
        )

    def _buckets(self, metadata: AttentionMetadata, lengths: list[int]) -> list[_Bucket]:
        if not lengths:
            return []
        pages = -(-np.array(lengths) // self.block_size)
        if int(pages.max()) * len(lengths) <= 2 * int(pages.sum()):
            return [self._bucket(metadata, None, max(lengths), min(lengths))]
        classes = np.ceil(np.log2(pages)).astype(np.int64)
        found = []
        for size_class in np.unique(classes):
            rows = np.flatnonzero(classes == size_class)
            inside = [lengths[row] for row in rows]
            index = torch.from_numpy(rows).to(metadata.block_table.device)
            found.append(self._bucket(metadata, index, max(inside), min(inside)))
        return found

    def _bucket(
        self, metadata: AttentionMetadata, rows: Tensor | None, max_k: int, min_k: int
    ) -> _Bucket:
        num_pages = -(-max_k // self.block_size)
        decode = metadata.num_decode
        table = metadata.block_table[:decode, :num_pages]
        lengths = metadata.seq_lens_k[:decode]
        if rows is not None:
            table, lengths = table[rows], lengths[rows]
        mask = None
        if min_k < max_k:
            hidden = torch.arange(max_k, device=lengths.device) >= lengths.unsqueeze(1)
            mask = self._mask(hidden).view(-1, 1, 1, max_k)
        return _Bucket(rows, table.reshape(-1), len(lengths), max_k, mask)

    def _chunks(self, metadata: AttentionMetadata, lengths: list[int]) -> list[_Chunk]:
        if metadata.num_decode == len(lengths):
            return []
        borders = metadata.cu_seqlens_q.tolist()
        chunks = []
        for request in range(metadata.num_decode, len(lengths)):
            start, stop, num_k = borders[request], borders[request + 1], lengths[request]
            pages = metadata.block_table[request, : -(-num_k // self.block_size)]
            num_q, mask = stop - start, None
            if num_q < num_k and num_q * num_k <= MASK_ELEMENTS:
                mask = _hide_future(num_q, num_k, 0, num_q, pages.device, self.dtype)
            chunks.append(_Chunk(start, stop, pages, num_k, mask))
        return chunks

    def _mask(self, hidden: Tensor) -> Tensor:
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device)
        return mask.masked_fill_(hidden, -math.inf)


class TorchPlan:
    """One step's gathers and masks."""

    def __init__(self, slots: Tensor, buckets: list[_Bucket], chunks: list[_Chunk]) -> None:
        self._slots = slots
        self._buckets = buckets
        self._chunks = chunks

    def store_kv(self, kv_layer: Tensor, k: Tensor, v: Tensor) -> None:
        """Put [T, K, H] keys and values into their slots."""
        slots = kv_layer.view(2, -1, *kv_layer.shape[3:])
        slots[0].index_copy_(0, self._slots, k)
        slots[1].index_copy_(0, self._slots, v)

    def attend(self, kv_layer: Tensor, q: Tensor) -> Tensor:
        """Causal attention of [T, N, H] over the stored keys and values -> [T, N, H]."""
        if not self._chunks and self._buckets[0].rows is None:
            return _decode(self._buckets[0], kv_layer, q)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for bucket in self._buckets:
            if bucket.rows is None:
                out[: bucket.num_rows] = _decode(bucket, kv_layer, q[: bucket.num_rows])
            else:
                out[bucket.rows] = _decode(bucket, kv_layer, q[bucket.rows])
        for chunk in self._chunks:
            queries = q[chunk.start : chunk.stop]
            out[chunk.start : chunk.stop] = _prefill(chunk, kv_layer, queries)
        return out


def _gather(kv_layer: Tensor, pages: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Pages of `rows` requests -> keys, values [rows, K, P * block_size, H] (views of copies)."""
    heads, head_dim = kv_layer.shape[3:]
    flat = kv_layer.view(2, kv_layer.shape[1], -1)
    keys = flat[0].index_select(0, pages).view(rows, -1, heads, head_dim)
    values = flat[1].index_select(0, pages).view(rows, -1, heads, head_dim)
    return keys.transpose(1, 2), values.transpose(1, 2)


def _decode(bucket: _Bucket, kv_layer: Tensor, q: Tensor) -> Tensor:
    """One query per row: the G query heads of a kv head stand where queries usually stand."""
    keys, values = _gather(kv_layer, bucket.pages, bucket.num_rows)
    grouped = q.reshape(bucket.num_rows, keys.shape[1], -1, q.shape[-1])
    out = F.scaled_dot_product_attention(
        grouped, keys[:, :, : bucket.max_k], values[:, :, : bucket.max_k], attn_mask=bucket.mask
    )
    return out.reshape(q.shape)


def _prefill(chunk: _Chunk, kv_layer: Tensor, q: Tensor) -> Tensor:
    """All queries of one request; kv heads are the batch and their G query heads share them."""
    num_q, num_heads, head_dim = q.shape
    keys, values = _gather(kv_layer, chunk.pages, 1)
    kv_heads, num_k = keys.shape[1], chunk.num_k
    shape = (kv_heads, num_heads // kv_heads, num_k, head_dim)
    keys = keys[0, :, :num_k].unsqueeze(1).expand(shape)
    values = values[0, :, :num_k].unsqueeze(1).expand(shape)
    grouped = q.view(num_q, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    if num_q == num_k or chunk.mask is not None:
        out = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=chunk.mask, is_causal=chunk.mask is None
        )
        return out.permute(2, 0, 1, 3).reshape(q.shape)
    tile = max(1, MASK_ELEMENTS // num_k)
    parts = []
    for start in range(0, num_q, tile):
        stop = min(start + tile, num_q)
        mask = _hide_future(num_q, num_k, start, stop, q.device, q.dtype)
        parts.append(
            F.scaled_dot_product_attention(grouped[:, :, start:stop], keys, values, attn_mask=mask)
        )
    return torch.cat(parts, dim=2).permute(2, 0, 1, 3).reshape(q.shape)


def _hide_future(
    num_q: int, num_k: int, start: int, stop: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Mask of queries start ... stop among the last `num_q` of `num_k` positions."""
    last_seen = torch.arange(start, stop, device=device).unsqueeze(1) + (num_k - num_q)
    mask = torch.zeros((stop - start, num_k), dtype=dtype, device=device)
    return mask.masked_fill_(torch.arange(num_k, device=device) > last_seen, -math.inf)
