"""The one interface of attention: a step's metadata, the KV cache's layout, what a backend does.

Owns the block-table semantics that every backend shares, and how numbers of eight bits are put
into a cache and made whole. Imports no backend.

    KV cache of one layer   [2, num_blocks, block_size, K, H]     0 = keys, 1 = values
    position p of request b lies in block  block_table[b, p // block_size]
                         at slot           block * block_size + p % block_size
    block 0 is the dummy: padding points to it, no request owns it, its content is finite

    a step's queries lie packed one request after the other; requests with one query come first:
    |q|q|q|qqqqq|qqq|      cu_seqlens_q = 0 1 2 3 8 11      num_decode = 3
"""

import dataclasses
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class AttentionMetadata:
    """Who attends to what in one step. B requests, T query tokens."""

    cu_seqlens_q: Tensor
    """int32 [B + 1]: where each request's queries begin."""
    seq_lens_k: Tensor
    """int32 [B]: tokens each request can see after this step's own are stored; 0 only pads."""
    block_table: Tensor
    """int32 [B, max_pages]; columns past a request's last block are 0."""
    positions: Tensor
    """int64 [T]: of the query tokens within their requests."""
    slot_mapping: Tensor
    """int64 [T]: where each query token's key and value go."""
    max_q: int
    max_k: int
    num_decode: int
    """Leading requests with exactly one query, longest `seq_lens_k` first."""


class HeadShape(NamedTuple):
    """The heads that attend together: a model's, or one rank's share."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    """Of queries, keys and values."""

    @property
    def group(self) -> int:
        """Query heads that share a kv head."""
        return self.num_heads // self.num_kv_heads

    def share(self, ranks: int) -> "HeadShape":
        """Of one of so many ranks."""
        return self._replace(
            num_heads=self.num_heads // ranks, num_kv_heads=self.num_kv_heads // ranks
        )


class RotaryTable(NamedTuple):
    """cos and sin of every position's angles, float32 [positions, H/2] each.

    Element i of a head turns with element i + H/2.
    """

    cos: Tensor
    sin: Tensor


class AttentionPlan(Protocol):
    """One step, worked out once and used by every layer. N query heads over K kv heads."""

    def attend(
        self, kv_layer: Tensor, qkv: Tensor, rotary: RotaryTable, wanted: Tensor | None = None
    ) -> Tensor:
        """Turn, store, attend: [T, N + 2K, H] queries, keys and values -> [T, N, H].

        Keys are turned by their positions and stored with the values in their slots; then the
        turned queries attend causally to what is stored. `qkv` may be overwritten.

        `wanted` (int64, indices into T): other rows of the result will not be read, and may hold
        anything.
        """


class AttentionBackend(Protocol):
    """One way to compute attention over a block table.

    A constructor takes the block size and raises ValueError, naming sizes that do work, if its
    kernels cannot page so.
    """

    name: str
    signature: str
    """What may change the bits of a result."""
    captured_queries: int
    """Up to how many queries a row may have in a plan that is captured in a CUDA graph and
    replayed; 0: none can be.

    Such a plan reads the metadata's tensors on the device, at every call. So the tensors may be
    buffers that are overwritten in place before each replay, while B, T, `max_q` and `max_k` stay:
    no row may have more queries, or grow longer, than was planned with. Rows that only pad have
    length 0, pages 0, slot 0 and one query or none; the query comes back as zeros.
    """

    def plan(self, metadata: AttentionMetadata) -> AttentionPlan:
        """Host work of one step, or of all replays of a graph; never captured itself."""


FP8 = torch.float8_e4m3fn
FP8_LARGEST = 448.0


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As a cache of this dtype keeps it: what e4m3 cannot hold becomes its largest number."""
    if dtype is FP8:
        x = x.clamp(-FP8_LARGEST, FP8_LARGEST)
    return x.to(dtype)


def indexable(kv_layer: Tensor) -> Tensor:
    """The same memory in a dtype that torch can gather and scatter: e4m3 as bytes."""
    return kv_layer.view(torch.uint8) if kv_layer.dtype is FP8 else kv_layer


def make_finite(kv_layer: Tensor, blocks: Tensor) -> None:
    """Zeros where `blocks` (int64) of one layer hold no number: masked slots are multiplied too."""
    raw = indexable(kv_layer)
    held = raw[:, blocks]
    broken = (held & 127) == 127 if kv_layer.dtype is FP8 else ~held.isfinite()
    raw[:, blocks] = held.masked_fill(broken, 0)


def allocate_kv_layer(
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """One layer's cache, zero-filled: masked slots are still multiplied, so they must be finite."""
    shape = (2, num_blocks, block_size, num_kv_heads, head_dim)
    return torch.zeros(shape, dtype=dtype, device=device)
