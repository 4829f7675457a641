"""TorchAttention: paged attention in plain torch; the reference, and the CPU's own backend.

Runs on any device. Decode rows are computed in tiles: the pages of neighbouring rows are gathered,
padded to the longest of the tile and masked. A tile's keys and values fit a core's second-level
cache, which halves the time of large batches; rows come longest first (see
`AttentionMetadata.num_decode`), so padding stays small. Prefill chunks are computed one request at
a time.

    row  0 |#########################|     a long row is a tile of its own
    -----------------------------------
    row  1 |#######|
    row  2 |######.|   . padding
    row  3 |#####..|
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.attention.backend import AttentionMetadata, RotaryTable, indexable, narrowed

TILE_BYTES = 3 << 19
"""Gathered keys and values of one decode tile (1.5 MiB)."""
MASK_ELEMENTS = 1 << 22
"""Largest mask of one prefill tile (16 MiB in float32)."""


class _Tile(NamedTuple):
    """Neighbouring decode rows."""

    start: int
    stop: int
    pages: Tensor
    """int32 [rows * P], row after row."""
    max_k: int
    mask: Tensor | None
    """[rows, 1, 1, max_k]: 0 or -inf; None: nothing to hide."""


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
    signature = "torch"
    captured_queries = 0

    def __init__(self, block_size: int, kv_width: int, dtype: torch.dtype) -> None:
        """`kv_width`: K * H of one rank; `dtype` of queries, keys and values."""
        self.block_size = block_size
        self.dtype = dtype
        self._tile_tokens = max(1, TILE_BYTES // (2 * kv_width * dtype.itemsize))

    def plan(self, metadata: AttentionMetadata) -> "TorchPlan":
        """Cut the step into tiles and chunks and build their masks."""
        lengths = metadata.seq_lens_k.tolist()
        return TorchPlan(
            metadata.positions,
            metadata.slot_mapping,
            self._tiles(metadata, lengths[: metadata.num_decode]),
            self._chunks(metadata, lengths),
        )

    def _tiles(self, metadata: AttentionMetadata, lengths: list[int]) -> list[_Tile]:
        tiles, start, longest = [], 0, 0
        for row, length in enumerate(lengths):
            longer = max(longest, length)
            if row > start and longer * (row + 1 - start) > self._tile_tokens:
                tiles.append(self._tile(metadata, start, row, lengths[start:row]))
                start, longer = row, length
            longest = longer
        if lengths:
            tiles.append(self._tile(metadata, start, len(lengths), lengths[start:]))
        return tiles

    def _tile(
        self, metadata: AttentionMetadata, start: int, stop: int, lengths: list[int]
    ) -> _Tile:
        max_k = max(lengths)
        pages = metadata.block_table[start:stop, : -(-max_k // self.block_size)].reshape(-1)
        if min(lengths) == max_k:
            return _Tile(start, stop, pages, max_k, None)
        ends = metadata.seq_lens_k[start:stop].unsqueeze(1)
        hidden = torch.arange(max_k, device=pages.device) >= ends
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=pages.device)
        mask = mask.masked_fill_(hidden, -math.inf).view(-1, 1, 1, max_k)
        return _Tile(start, stop, pages, max_k, mask)

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


class TorchPlan:
    """One step's gathers and masks."""

    def __init__(
        self, positions: Tensor, slots: Tensor, tiles: list[_Tile], chunks: list[_Chunk]
    ) -> None:
        self._positions = positions
        self._slots = slots
        self._tiles = tiles
        self._chunks = chunks
        self._angles: tuple[Tensor, Tensor] | None = None

    def attend(
        self, kv_layer: Tensor, qkv: Tensor, rotary: RotaryTable, wanted: Tensor | None = None
    ) -> Tensor:
        """Turn, store, attend: [T, N + 2K, H] -> [T, N, H]."""
        if self._angles is None:
            self._angles = rotary_angles(rotary, self._positions)
        kv_heads = kv_layer.shape[3]
        turned = rotate(qkv[:, :-kv_heads], *self._angles)  # q and k in one go
        self._store_kv(kv_layer, turned[:, -kv_heads:], qkv[:, -kv_heads:])
        return self._attend(kv_layer, turned[:, :-kv_heads], wanted)

    def _store_kv(self, kv_layer: Tensor, k: Tensor, v: Tensor) -> None:
        slots = indexable(kv_layer).view(2, -1, *kv_layer.shape[3:])
        slots[0].index_copy_(0, self._slots, indexable(narrowed(k, kv_layer.dtype)))
        slots[1].index_copy_(0, self._slots, indexable(narrowed(v, kv_layer.dtype)))

    def _attend(self, kv_layer: Tensor, q: Tensor, wanted: Tensor | None) -> Tensor:
        if not self._chunks and len(self._tiles) == 1:
            return _decode(self._tiles[0], kv_layer, q)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for tile in self._tiles:
            out[tile.start : tile.stop] = _decode(tile, kv_layer, q[tile.start : tile.stop])
        chunks = self._chunks if wanted is None else _narrowed(self._chunks, wanted.tolist())
        for chunk in chunks:
            queries = q[chunk.start : chunk.stop]
            out[chunk.start : chunk.stop] = _prefill(chunk, kv_layer, queries)
        return out


def _narrowed(chunks: list[_Chunk], wanted: list[int]) -> list[_Chunk]:
    """Without the queries before a chunk's first wanted one, and without chunks that have none."""
    narrow = []
    for chunk in chunks:
        first = min((row for row in wanted if chunk.start <= row < chunk.stop), default=chunk.stop)
        if first < chunk.stop:
            mask = chunk.mask if chunk.mask is None else chunk.mask[first - chunk.start :]
            narrow.append(chunk._replace(start=first, mask=mask))
    return narrow


def rotary_angles(rotary: RotaryTable, positions: Tensor) -> tuple[Tensor, Tensor]:
    """[T] -> (cos, sin) [T, 1, H]; sin carries the minus of the first half."""
    cos, sin = rotary.cos[positions], rotary.sin[positions]
    return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn [T, heads, H] by its positions' angles."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    return (x * cos).addcmul_(swapped, sin).to(x.dtype)


def _gather(
    kv_layer: Tensor, pages: Tensor, rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Pages of `rows` requests -> keys, values [rows, K, P * block_size, H] (views of copies)."""
    heads, head_dim = kv_layer.shape[3:]
    flat = indexable(kv_layer).view(2, kv_layer.shape[1], -1)
    keys, values = (
        side.index_select(0, pages).view(kv_layer.dtype).view(rows, -1, heads, head_dim).to(dtype)
        for side in flat
    )
    return keys.transpose(1, 2), values.transpose(1, 2)


def _decode(tile: _Tile, kv_layer: Tensor, q: Tensor) -> Tensor:
    """One query per row: the G query heads of a kv head stand where queries usually stand."""
    rows, _, head_dim = q.shape
    keys, values = _gather(kv_layer, tile.pages, rows, q.dtype)
    grouped = q.reshape(rows, keys.shape[1], -1, head_dim)
    out = F.scaled_dot_product_attention(
        grouped, keys[:, :, : tile.max_k], values[:, :, : tile.max_k], attn_mask=tile.mask
    )
    return out.reshape(q.shape)


def _prefill(chunk: _Chunk, kv_layer: Tensor, q: Tensor) -> Tensor:
    """All queries of one request; kv heads are the batch and their G query heads share them."""
    num_q, num_heads, head_dim = q.shape
    keys, values = _gather(kv_layer, chunk.pages, 1, q.dtype)
    kv_heads, num_k = keys.shape[1], chunk.num_k
    shape = (kv_heads, num_heads // kv_heads, num_k, head_dim)
    keys = keys[0, :, :num_k].unsqueeze(1).expand(shape)
    values = values[0, :, :num_k].unsqueeze(1).expand(shape)
    grouped = q.reshape(num_q, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
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
