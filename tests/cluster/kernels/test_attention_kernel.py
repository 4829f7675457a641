"""The compiled attention against the textbook in float64, and its promise about bits.

Unused blocks of the cache are NaN: whatever is read outside a request shows.
"""

import itertools
import math
import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.attention.backend import AttentionBackend, AttentionMetadata, RotaryTable
from cluster.attention.native import NativeAttention

native = pytest.importorskip(
    "cluster.kernels._native", reason="the compiled kernels are not built on this machine"
)
VARIANTS = native.attention_variants()
if not VARIANTS:
    pytest.skip("this CPU has none of the instructions they need", allow_module_level=True)

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2.5e-2}
"""Of outputs near 1; bfloat16 rounds the weights of keys and the result to 8 bits."""
KINDS = [(torch.float32, 0), *((torch.bfloat16, variant) for variant in range(len(VARIANTS)))]
LENGTHS = [0, 1, 14, 15, 16, 17, 63, 64, 254, 255, 256, 257, 600]


class Case(NamedTuple):
    """Requests as (tokens cached, queries now), and the heads."""

    requests: list[tuple[int, int]]
    block_size: int = 16
    kv_heads: int = 2
    group: int = 3
    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16
    variant: int = 0


@st.composite
def cases(draw: st.DrawFn) -> Case:
    cached = st.sampled_from(LENGTHS)
    decodes = draw(st.lists(st.tuples(cached, st.just(1)), max_size=4))
    chunks = draw(st.lists(st.tuples(cached, st.sampled_from([2, 5, 64, 130])), max_size=2))
    dtype, variant = draw(st.sampled_from(KINDS))
    return Case(
        [*decodes, *chunks] or [(3, 1)],
        draw(st.sampled_from([1, 2, 16, 64, 256])),
        draw(st.sampled_from([1, 2, 3])),
        draw(st.sampled_from([1, 3, 5, 8])),
        draw(st.sampled_from([6, 16, 32, 64, 80, 128])),
        dtype,
        variant,
    )


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def numbers(case: Case, request: int, heads: int) -> Tensor:
    """What the model would bring: [tokens, heads, H], the same for a request wherever it runs."""
    tokens = sum(case.requests[request])
    generator = torch.Generator().manual_seed(1000 * heads + tokens)
    return torch.randn(tokens, heads, case.head_dim, generator=generator).to(case.dtype)


def rotary(case: Case) -> RotaryTable:
    angles = torch.rand(1024, case.head_dim // 2, generator=torch.Generator().manual_seed(3)) * 6
    return RotaryTable(angles.cos(), angles.sin())


def turned(x: Tensor, table: RotaryTable) -> Tensor:
    """[tokens, heads, H] from position 0 on, turned in float32."""
    half = x.shape[-1] // 2
    low, high = x.float()[..., :half], x.float()[..., half:]
    cos, sin = table.cos[: len(x)].unsqueeze(1), table.sin[: len(x)].unsqueeze(1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1).to(x.dtype)


def run(
    case: Case, shuffle: int = 0, threads: int = 2, wanted: Tensor | None = None
) -> list[Tensor]:
    """One step over an earlier filled cache: every request's output [queries, N, H]."""
    torch.set_num_threads(threads)
    lengths = [cached + now for cached, now in case.requests]
    pages = [-(-length // case.block_size) for length in lengths]
    order = list(range(1, sum(pages) + 1))
    random.Random(shuffle).shuffle(order)
    table = torch.zeros((len(lengths), max(pages)), dtype=torch.int32)
    shape = (2, len(order) + 1, case.block_size, case.kv_heads, case.head_dim)
    layer = torch.full(shape, math.nan, dtype=case.dtype)
    heads, all_positions, all_slots, qkv = case.group * case.kv_heads, [], [], []
    for row, (cached, now) in enumerate(case.requests):
        table[row, : pages[row]] = torch.tensor([order.pop() for _ in range(pages[row])])
        x = numbers(case, row, heads + 2 * case.kv_heads)
        positions = torch.arange(cached + now)
        blocks = table[row, positions // case.block_size].long()
        offsets = positions % case.block_size
        keys = turned(x[:, heads : -case.kv_heads], rotary(case))
        layer[0, blocks[:cached], offsets[:cached]] = keys[:cached]
        layer[1, blocks[:cached], offsets[:cached]] = x[:cached, -case.kv_heads :]
        all_positions.append(positions[cached:])
        all_slots.append((blocks * case.block_size + offsets)[cached:])
        qkv.append(x[cached:])
    counts = [now for _, now in case.requests]
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, *counts]).cumsum(0).int(),
        seq_lens_k=torch.tensor(lengths).int(),
        block_table=table,
        positions=torch.cat(all_positions),
        slot_mapping=torch.cat(all_slots),
        max_q=max(counts),
        max_k=max(lengths),
        num_decode=counts.count(1),
    )
    backend: AttentionBackend = NativeAttention(native, case.block_size, case.variant)
    out = backend.plan(metadata).attend(layer, torch.cat(qkv), rotary(case), wanted)
    return list(torch.split(out, counts))


def textbook(case: Case, request: int) -> Tensor:
    """Causal attention of the request's queries in float64."""
    cached, heads = case.requests[request][0], case.group * case.kv_heads
    x = numbers(case, request, heads + 2 * case.kv_heads)
    qk = turned(x[:, : -case.kv_heads], rotary(case)).double()
    q, k = qk[cached:, :heads], qk[:, heads:].repeat_interleave(case.group, 1)
    v = x[:, -case.kv_heads :].double().repeat_interleave(case.group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(case.head_dim)
    ahead = torch.ones(len(q), len(k)).triu(cached + 1).bool()
    weights = scores.masked_fill(ahead, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


@settings(deadline=None, max_examples=60)
@given(cases())
def test_every_request_gets_the_attention_of_the_textbook(case: Case) -> None:
    bound = ROUNDING[case.dtype]
    for request, out in enumerate(run(case)):
        torch.testing.assert_close(
            out.double(), textbook(case, request), atol=bound / 3, rtol=bound
        )


@settings(deadline=None, max_examples=40)
@given(cases(), st.integers(1, 100))
def test_neither_the_place_of_blocks_nor_threads_nor_neighbours_change_a_bit(
    case: Case, shuffle: int
) -> None:
    together = run(case)
    for other in (run(case, shuffle), run(case, threads=1)):
        assert all(map(torch.equal, together, other))
    for request, out in enumerate(together):
        (alone,) = run(case._replace(requests=[case.requests[request]]))
        assert torch.equal(out, alone)


@settings(deadline=None, max_examples=40)
@given(cases(), st.randoms(use_true_random=False))
def test_wanted_rows_have_the_same_bits_when_no_others_are_asked_for(
    case: Case, random: random.Random
) -> None:
    whole = torch.cat(run(case))
    rows = sorted(random.sample(range(len(whole)), random.randint(1, len(whole))))
    wanted = torch.tensor(rows)
    narrow = torch.cat(run(case, wanted=wanted))[wanted]
    if VARIANTS[case.variant] == "amx":  # of few rows another unit adds
        torch.testing.assert_close(narrow, whole[wanted], atol=2e-2, rtol=2e-2)
    else:
        assert torch.equal(narrow, whole[wanted])


def test_a_wanted_row_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RuntimeError, match="wanted row 3 is outside 3"):
        run(Case([(0, 3)]), wanted=torch.tensor([3]))


@pytest.mark.parametrize(
    ("dtype", "variant"), [kind for kind in KINDS if VARIANTS[kind[1]] != "amx"]
)
@pytest.mark.parametrize("group", [1, 3, 8])
def test_however_a_prompt_is_cut_into_chunks_each_query_has_the_same_bits(
    dtype: torch.dtype, variant: int, group: int
) -> None:
    case = Case([(0, 600)], 16, 2, group, 64, dtype, variant)
    whole = in_chunks(case, [0, 600])
    for borders in ([0, 1, 254, 255, 256, 257, 258, 511, 599, 600], [0, 300, 303, 513, 600]):
        assert torch.equal(whole, in_chunks(case, borders))


def in_chunks(case: Case, borders: list[int]) -> Tensor:
    """The only request's queries, computed step by step over one cache; one query is a decode."""
    heads, length = case.group * case.kv_heads, sum(case.requests[0])
    x = numbers(case, 0, heads + 2 * case.kv_heads)
    blocks = -(-length // case.block_size)
    shape = (2, blocks + 1, case.block_size, case.kv_heads, case.head_dim)
    layer = torch.zeros(shape, dtype=case.dtype)
    backend, parts = NativeAttention(native, case.block_size, case.variant), []
    for start, stop in itertools.pairwise(borders):
        positions = torch.arange(start, stop)
        metadata = AttentionMetadata(
            cu_seqlens_q=torch.tensor([0, stop - start], dtype=torch.int32),
            seq_lens_k=torch.tensor([stop], dtype=torch.int32),
            block_table=torch.arange(1, blocks + 1, dtype=torch.int32).unsqueeze(0),
            positions=positions,
            slot_mapping=positions + case.block_size,
            max_q=stop - start,
            max_k=stop,
            num_decode=int(stop - start == 1),
        )
        plan = backend.plan(metadata)
        parts.append(plan.attend(layer, x[start:stop].clone(), rotary(case)))
    return torch.cat(parts)


def test_long_contexts_are_cut_among_threads_without_a_trace() -> None:
    case = Case([(1000, 1)], kv_heads=1)
    assert torch.equal(run(case)[0], run(case, threads=1)[0])
    torch.testing.assert_close(
        run(case)[0].double(), textbook(case, 0), atol=8e-3, rtol=ROUNDING[case.dtype]
    )


@pytest.mark.parametrize("block_size", [0, 3, 48])
def test_a_block_size_that_is_no_power_of_two_is_refused(block_size: int) -> None:
    with pytest.raises(ValueError, match="not a power of two"):
        NativeAttention(native, block_size, 0)


def test_a_block_that_does_not_exist_is_refused() -> None:
    one = torch.ones(1, dtype=torch.int64)
    step = native.PagedAttention(
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([1], dtype=torch.int32),
        torch.tensor([[7]], dtype=torch.int32),
        one * 0,
        one,
        16,
        0,
    )
    table = torch.ones(4, 4)
    with pytest.raises(RuntimeError, match="block 7 does not exist"):
        step.attend(torch.zeros(2, 2, 16, 1, 8), torch.zeros(1, 3, 8), table, table)
