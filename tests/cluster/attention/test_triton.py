"""The Triton kernels against the textbook, run on a CPU by Triton's interpreter."""

from tests.cluster import triton_interpreter  # isort: skip

import dataclasses
import random
from collections.abc import Iterator

import pytest
import torch
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime import interpreter

from cluster.attention.backend import allocate_kv_layer
from cluster.attention.triton import rotary_store, sizes
from cluster.attention.triton.attention import TritonAttention
from cluster.attention.triton.sizes import KernelSizes
from cluster.attention.triton.split_kv import split_kernel
from cluster.worker.graphs.decode_buffers import DecodeBuffers
from tests.cluster.attention.textbook import Case, Step, step, turning, unturned

assert triton_interpreter
RANDOM_CASES = 210


def backend(
    case: Case,
    *,
    processors: int = 2,
    deterministic: bool = False,
    dtype: torch.dtype | None = None,
) -> TritonAttention:
    shape = case.shape(dtype or torch.float32)
    return TritonAttention(case.block_size, shape, 8, (9, 0), processors, deterministic)


def attend(attention: TritonAttention, made: Step) -> Tensor:
    return attention.plan(made.metadata).attend(made.kv_layer, made.qkv.clone(), made.rotary)


def padded(made: Step, rows: int) -> Step:
    """With rows behind the others that only pad; all have one query."""
    meta = made.metadata
    none = torch.zeros(rows, dtype=torch.int64)
    meta = dataclasses.replace(
        meta,
        cu_seqlens_q=torch.arange(len(meta.seq_lens_k) + rows + 1, dtype=torch.int32),
        seq_lens_k=torch.cat((meta.seq_lens_k, none.int())),
        block_table=torch.nn.functional.pad(meta.block_table, (0, 0, 0, rows)),
        positions=torch.cat((meta.positions, none)),
        slot_mapping=torch.cat((meta.slot_mapping, none)),
        num_decode=meta.num_decode + rows,
    )
    qkv = torch.cat((made.qkv, torch.randn(rows, *made.qkv.shape[1:])))
    nothing = torch.zeros(rows, *made.expected.shape[1:])
    return made._replace(metadata=meta, qkv=qkv, expected=torch.cat((made.expected, nothing)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Lengths around the borders of pages; decodes, drafts to be judged and chunks of prompts."""
    page = draw(st.sampled_from([16, 16, 32, 64, 128, 256]))
    borders = (0, 1) if page > 64 else (0, 1, 2, 3)
    near = sorted({max(0, n * page + d) for n in borders for d in (-2, -1, 0, 1)})
    before = st.sampled_from(near)
    requests = draw(st.lists(st.tuples(before, st.just(1)), max_size=3))
    more = draw(st.sampled_from([0, 0, 3, 9]))
    if more:
        requests += draw(st.lists(st.tuples(before, st.integers(2, more)), min_size=1, max_size=2))
    kv_heads = draw(st.sampled_from([1, 2]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 5]))
    return Case(requests or [(0, 1)], page, heads, kv_heads, draw(st.sampled_from([8, 16, 12])))


@pytest.fixture(scope="module", autouse=True)
def patched_once() -> Iterator[None]:
    """Triton's language is patched for all kernels at once, not anew at each call of a function."""
    scopes = [interpreter._patch_lang(one.fn) for one in (split_kernel, tl.standard.zeros)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", lambda fn: interpreter._LangPatchScope())
        yield
    for scope in reversed(scopes):
        scope.restore()


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short rows too have many splits, many blocks and many tiles."""
    monkeypatch.setattr(sizes, "MIN_SPLIT_BLOCKS", 1)
    monkeypatch.setattr(sizes, "FIXED_SPLIT", 32)
    monkeypatch.setattr(sizes, "SHORT_LINES", 16)
    monkeypatch.setattr(sizes, "COMBINED_AT_ONCE", 4)
    monkeypatch.setattr(rotary_store, "ROTATED_HEADS", 16)
    monkeypatch.setattr(sizes, "prefill_sizes", lambda shape, capability: KernelSizes(16, 16, 4, 2))
    monkeypatch.setattr(
        sizes, "split_sizes", lambda shape, capability, max_q: KernelSizes(16, 16, 4, 2)
    )


@settings(deadline=None, max_examples=RANDOM_CASES, database=None, derandomize=True)
@given(cases(), st.booleans(), st.integers(0, 2), st.sampled_from([1, 2, 4]))
def test_random_steps_equal_the_textbook(
    case: Case, deterministic: bool, padding: int, processors: int
) -> None:
    order = list(range(1, case.num_blocks + 3))
    random.Random(5).shuffle(order)
    made = step(case, order, turning(case.head_dim))
    if all(now == 1 for _, now in case.requests):
        made = padded(made, padding)
    attention = backend(case, deterministic=deterministic, processors=processors)
    torch.testing.assert_close(attend(attention, made), made.expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=25, database=None, derandomize=True)
@given(cases(), st.randoms(use_true_random=False))
def test_no_bit_depends_on_where_pages_lie_or_on_what_nobody_owns(
    case: Case, shuffler: random.Random
) -> None:
    order = list(range(1, case.num_blocks + 3))
    one = attend(backend(case), step(case, order, unturned(case.head_dim)))
    shuffler.shuffle(order)
    other = step(case, order, unturned(case.head_dim), seed=1)
    other.kv_layer[:, 0] = torch.nan
    assert torch.equal(one, attend(backend(case), other))


def test_half_precision_is_as_near_as_its_rounding() -> None:
    """float16: the interpreter has no products of bfloat16."""
    dtype, near = torch.float16, 3e-3
    case = Case([(40, 1), (15, 1), (17, 9)], 16, 10, 2, 16)
    made = step(case, list(range(1, 9)), unturned(16))
    made = made._replace(qkv=made.qkv.to(dtype), kv_layer=made.kv_layer.to(dtype))
    out = attend(backend(case, dtype=dtype), made)
    assert out.dtype is dtype
    torch.testing.assert_close(out.float(), made.expected, atol=near, rtol=near)


def test_a_row_has_the_same_bits_in_any_batch_where_splits_are_fixed() -> None:
    among = step(Case([(150, 1), (90, 1), (3, 1)], 16, 5, 1), list(range(1, 30)), unturned(8))
    meta = among.metadata
    first = {name: getattr(meta, name)[:1] for name in ("seq_lens_k", "positions", "slot_mapping")}
    table, borders = meta.block_table[:1], meta.cu_seqlens_q[:2]
    meta = dataclasses.replace(
        meta, cu_seqlens_q=borders, block_table=table, max_k=151, num_decode=1, **first
    )
    alone = among._replace(metadata=meta, qkv=among.qkv[:1])
    case = Case([(150, 1)], 16, 5, 1)
    many = attend(backend(case, deterministic=True), among)
    assert torch.equal(attend(backend(case, deterministic=True), alone)[0], many[0])


def test_a_plan_of_decodes_follows_its_buffers() -> None:
    """What a replayed graph does: the same launches, other lengths, pages and positions."""
    long, short = Case([(130, 1), (60, 1)], 16, 5, 1), Case([(9, 1), (70, 1)], 16, 5, 1)
    order = list(range(1, 20))
    planned, later = step(long, order, turning(8)), step(short, order, turning(8))
    plan = backend(long).plan(planned.metadata)
    for name in ("cu_seqlens_q", "seq_lens_k", "positions", "slot_mapping"):
        getattr(planned.metadata, name).copy_(getattr(later.metadata, name))
    planned.metadata.block_table.zero_()
    width = later.metadata.block_table.shape[1]
    planned.metadata.block_table[:, :width] = later.metadata.block_table
    out = plan.attend(later.kv_layer, later.qkv, later.rotary)
    torch.testing.assert_close(out, later.expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=10, database=None, derandomize=True)
@given(cases(), cases(), st.integers(0, 2))
def test_a_plan_of_drafts_follows_its_buffers(first: Case, second: Case, padding: int) -> None:
    """As a recording does: planned once, then other rows, in other numbers, come and go."""
    attention = backend(second, processors=1)
    most = attention.captured_queries
    made: list[Step] = []
    for requests in (first.requests, second.requests):
        short = [(before, min(now, most)) for before, now in requests]
        one = dataclasses.replace(second, requests=short)
        made.append(step(one, list(range(1, one.num_blocks + 1)), turning(one.head_dim)))
    size = max(len(some.qkv) for some in made) + padding
    attention.rows_p2 = sizes.power_of_two(size)
    buffers = DecodeBuffers(size, 64, torch.device("cpu"))
    planned = attention.plan(buffers.metadata(size, most, 1000))
    for some in made:
        num_tokens = len(some.qkv)
        meta = dataclasses.replace(some.metadata, max_q=most)
        buffers.fill(torch.zeros(num_tokens, dtype=torch.int64), meta, size)
        qkv = torch.cat((some.qkv, torch.randn(size - num_tokens, *some.qkv.shape[1:])))
        out = planned.attend(some.kv_layer, qkv, some.rotary)
        torch.testing.assert_close(out[:num_tokens], some.expected, atol=1e-5, rtol=1e-5)
        assert not out[num_tokens:].any()


def test_keys_and_values_lie_where_the_slots_say_and_nowhere_else() -> None:
    case = Case([(3, 4)], 16, 2, 1)
    made = step(case, [2], unturned(8))
    kv_layer = allocate_kv_layer(4, 16, 1, 8, torch.float32, torch.device("cpu"))
    backend(case).plan(made.metadata).attend(kv_layer, made.qkv.clone(), made.rotary)
    torch.testing.assert_close(kv_layer[0, 2, 3:7], made.qkv[:, 2:3])
    torch.testing.assert_close(kv_layer[1, 2, 3:7], made.qkv[:, 3:4])
    kv_layer[:, 2, 3:7] = 0
    assert not kv_layer.any()


def test_the_shapes_of_production_also_fit_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    case = Case([(300, 1), (255, 1), (20, 30)], 256, 5, 1, 128)
    made = step(case, [4, 1, 7, 3, 2], turning(128))
    torch.testing.assert_close(attend(backend(case), made), made.expected, atol=1e-5, rtol=1e-5)
