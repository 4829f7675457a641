import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.attention import cpu
from cluster.attention.backend import AttentionMetadata, RotaryTable, allocate_kv_layer
from cluster.attention.cpu import TorchAttention

NUM_BLOCKS = 64


class Case(NamedTuple):
    """Requests as (tokens computed before, queries now), and the heads."""

    requests: list[tuple[int, int]]
    block_size: int
    heads: int
    kv_heads: int
    head_dim: int = 8


@st.composite
def cases(draw: st.DrawFn) -> Case:
    block_size = draw(st.sampled_from([1, 4, 16]))
    near = [
        n for b in (0, 1, 2, 3) for n in (b * block_size - 1, b * block_size, b * block_size + 1)
    ]
    before = st.sampled_from(sorted({n for n in near if 0 <= n <= 45}))
    decodes = draw(st.lists(st.tuples(before, st.just(1)), max_size=4))
    prefills = draw(st.lists(st.tuples(before, st.integers(2, 9)), max_size=2))
    requests = [*decodes, *prefills] or [(0, 1)]
    kv_heads = draw(st.sampled_from([1, 2]))
    return Case(requests, block_size, kv_heads * draw(st.sampled_from([1, 3])), kv_heads)


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
    borders = torch.tensor([0, *counts]).cumsum(0).int()
    return AttentionMetadata(
        cu_seqlens_q=borders,
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


def expected(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the last len(q) of len(k) positions, by the textbook."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    ahead = torch.ones(len(q), len(k)).triu(len(k) - len(q) + 1).bool()
    weights = scores.masked_fill(ahead, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def paged(case: Case, order: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """(paged attention, textbook attention) of one step over an earlier filled cache."""
    torch.manual_seed(seed)
    meta = metadata(case, order)
    # stale content of freed blocks must not matter
    layer = torch.randn(2, max(order) + 1, case.block_size, case.kv_heads, case.head_dim)
    total = sum(now for _, now in case.requests)
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(total, case.heads, case.head_dim, generator=generator)
    wanted, new_k, new_v = [], [], []
    for row, (before, now) in enumerate(case.requests):
        shape = (2, before + now, case.kv_heads, case.head_dim)
        k, v = torch.randn(shape, generator=generator)
        for position in range(before):
            page, offset = divmod(position, case.block_size)
            layer[:, meta.block_table[row, page], offset] = torch.stack((k, v))[:, position]
        new_k.append(k[before:])
        new_v.append(v[before:])
        start = int(meta.cu_seqlens_q[row])
        wanted.append(expected(q[start : start + now], k, v))
    backend = TorchAttention(case.block_size, case.kv_heads * case.head_dim, torch.float32)
    plan = backend.plan(meta)
    qkv = torch.cat((q, torch.cat(new_k), torch.cat(new_v)), 1)
    return plan.attend(layer, qkv, unturned(case.head_dim)), torch.cat(wanted)


@settings(deadline=None, max_examples=120)
@given(cases(), st.randoms(use_true_random=False))
def test_paged_attention_is_plain_attention_wherever_the_blocks_lie(
    case: Case, random: "object"
) -> None:
    order = list(range(1, 400))
    one, wanted = paged(case, order)
    torch.testing.assert_close(one, wanted, atol=2e-6, rtol=1e-5)
    order.reverse()
    random.shuffle(order)  # type: ignore[attr-defined]
    other, _ = paged(case, order, seed=1)
    assert torch.equal(one, other)


def test_small_decode_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [90, 41, 40, 33, 7, 3, 1, 1, 1, 0]
    case = Case([(length, 1) for length in lengths] + [(5, 6)], 4, 6, 2)
    monkeypatch.setattr(cpu, "TILE_BYTES", 2 * 16 * 4 * 50)
    tiles = TorchAttention(4, 16, torch.float32).plan(metadata(case, list(range(1, 200))))
    assert [(tile.start, tile.stop) for tile in tiles._tiles] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (4, 10),
    ]
    one, wanted = paged(case, list(range(1, 200)))
    torch.testing.assert_close(one, wanted, atol=2e-6, rtol=1e-5)


def test_a_chunk_whose_mask_would_be_large_is_computed_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "MASK_ELEMENTS", 100)
    one, wanted = paged(Case([(33, 9), (0, 12)], 8, 4, 2), list(range(1, 60)))
    torch.testing.assert_close(one, wanted, atol=2e-6, rtol=1e-5)


def test_a_first_chunk_is_torchs_own_causal_attention() -> None:
    case = Case([(0, 21)], 16, 4, 4)
    one, wanted = paged(case, [3, 9])
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(21, 4, 8, generator=generator)
    k, v = torch.randn((2, 21, 4, 8), generator=generator)
    sdpa = F.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), is_causal=True
    ).transpose(0, 1)
    torch.testing.assert_close(one, sdpa, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(one, wanted, atol=2e-6, rtol=1e-5)


def test_padding_points_to_the_dummy_block_and_adds_nothing() -> None:
    layer = allocate_kv_layer(3, 4, 1, 8, torch.float32, torch.device("cpu"))
    meta = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, 1, 2], dtype=torch.int32),
        seq_lens_k=torch.tensor([5, 1], dtype=torch.int32),
        block_table=torch.tensor([[1, 2], [0, 0]], dtype=torch.int32),
        positions=torch.tensor([4, 0]),
        slot_mapping=torch.tensor([8, 0]),
        max_q=1,
        max_k=5,
        num_decode=2,
    )
    plan = TorchAttention(4, 8, torch.float32).plan(meta)
    value = torch.ones(2, 1, 8)
    qkv = torch.cat((torch.randn(2, 1, 8), torch.zeros(2, 1, 8), value), 1)
    out = plan.attend(layer, qkv, unturned(8))
    torch.testing.assert_close(out[0], value[0] / 5)  # four stored zeros and a one
    torch.testing.assert_close(out[1], value[1])
