"""What every backend is held against: attention by the textbook, over blocks laid out at will."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.attention.backend import AttentionBackend, AttentionMetadata, HeadShape, RotaryTable


@dataclasses.dataclass(frozen=True)
class Case:
    """Requests as (tokens computed before, queries now), decodes first; and the heads."""

    requests: list[tuple[int, int]]
    block_size: int
    heads: int
    kv_heads: int
    head_dim: int = 8

    def shape(self, dtype: torch.dtype = torch.float32) -> HeadShape:
        return HeadShape(self.heads, self.kv_heads, self.head_dim, dtype)

    @property
    def num_blocks(self) -> int:
        return 1 + sum(-(-(before + now) // self.block_size) for before, now in self.requests)


class Step(NamedTuple):
    """One step over an earlier filled cache, and what it must come to."""

    metadata: AttentionMetadata
    kv_layer: Tensor
    qkv: Tensor
    rotary: RotaryTable
    expected: Tensor


def metadata(case: Case, order: list[int]) -> AttentionMetadata:
    """Blocks are handed out in the given physical order (block 0 never)."""
    free = iter(order)
    lengths = [before + now for before, now in case.requests]
    pages = [-(-length // case.block_size) for length in lengths]
    table = torch.zeros((len(lengths), max(pages)), dtype=torch.int32)
    slots, positions = [], []
    for row, count in enumerate(pages):
        table[row, :count] = torch.tensor([next(free) for _ in range(count)])
    for row, (before, now) in enumerate(case.requests):
        for position in range(before, before + now):
            page, offset = divmod(position, case.block_size)
            positions.append(position)
            slots.append(int(table[row, page]) * case.block_size + offset)
    counts = [now for _, now in case.requests]
    return AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, *counts]).cumsum(0).int(),
        seq_lens_k=torch.tensor(lengths, dtype=torch.int32),
        block_table=table,
        positions=torch.tensor(positions),
        slot_mapping=torch.tensor(slots),
        max_q=max(counts),
        max_k=max(lengths),
        num_decode=counts.count(1),
    )


def unturned(head_dim: int) -> RotaryTable:
    """Angles of zero: heads stay as they are."""
    angles = torch.zeros(1000, head_dim // 2)
    return RotaryTable(angles.cos(), angles.sin())


def turning(head_dim: int) -> RotaryTable:
    """Angles without pattern."""
    angles = torch.rand(1000, head_dim // 2, generator=torch.Generator().manual_seed(3)) * 6.3
    return RotaryTable(angles.cos(), angles.sin())


def turn(x: Tensor, rotary: RotaryTable, positions: Tensor) -> Tensor:
    """[T, heads, H]: element i with element i + H/2."""
    cos, sin = rotary.cos[positions].unsqueeze(1), rotary.sin[positions].unsqueeze(1)
    one, two = x.chunk(2, -1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of the last len(q) of len(k) positions."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    ahead = torch.ones(len(q), len(k)).triu(len(k) - len(q) + 1).bool()
    weights = scores.masked_fill(ahead, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def step(
    case: Case,
    order: list[int],
    rotary: RotaryTable,
    seed: int = 0,
    kept: torch.dtype = torch.float32,
) -> Step:
    """`seed` changes only what lies in slots that nobody owns; `kept`: the cache's numbers."""
    meta = metadata(case, order)
    stale = torch.Generator().manual_seed(seed)
    shape = (2, max(order) + 1, case.block_size, case.kv_heads, case.head_dim)
    layer = torch.randn(shape, generator=stale)
    total = sum(now for _, now in case.requests)
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(total, case.heads, case.head_dim, generator=generator)
    turned = turn(q, rotary, meta.positions)
    wanted, new = [], []
    for row, (before, now) in enumerate(case.requests):
        kv = torch.randn((2, before + now, case.kv_heads, case.head_dim), generator=generator)
        kv[:, :before] = kv[:, :before].to(kept).float()
        for position in range(before):
            page, offset = divmod(position, case.block_size)
            layer[:, meta.block_table[row, page], offset] = kv[:, position]
        new.append(kv[:, before:].clone())
        kv[0, before:] = turn(kv[0, before:], rotary, torch.arange(before, before + now))
        kv[:, before:] = kv[:, before:].to(kept).float()
        start = int(meta.cu_seqlens_q[row])
        wanted.append(attention(turned[start : start + now], kv[0], kv[1]))
    keys, values = torch.cat(new, 1)
    return Step(meta, layer.to(kept), torch.cat((q, keys, values), 1), rotary, torch.cat(wanted))


Backend = Callable[[Case], AttentionBackend]


def run(
    backend: Backend, case: Case, order: list[int], seed: int = 0, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(the backend's answer, the textbook's), heads unturned; `rows`: the only ones wanted."""
    made = step(case, order, unturned(case.head_dim), seed)
    plan = backend(case).plan(made.metadata)
    return plan.attend(made.kv_layer, made.qkv, made.rotary, rows), made.expected
