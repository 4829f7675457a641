import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.attention import cpu
from cluster.attention.backend import AttentionMetadata, allocate_kv_layer
from cluster.attention.cpu import TorchAttention
from tests.cluster.attention.textbook import Case, metadata, run, step, turning, unturned


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


def backend(case: Case) -> TorchAttention:
    return TorchAttention(case.block_size, case.kv_heads * case.head_dim, torch.float32)


def paged(
    case: Case, order: list[int], seed: int = 0, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return run(backend, case, order, seed, rows)


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


@pytest.mark.parametrize("most", [100, 1 << 22], ids=["in parts", "whole"])
def test_wanted_rows_are_as_good_when_no_others_are_asked_for(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "MASK_ELEMENTS", most)
    case = Case([(20, 1), (7, 1), (33, 9), (0, 12), (5, 6)], 8, 4, 2)
    rows = torch.tensor([0, 1, 10, 16, 20])  # a chunk's last, two of the next, none of the last
    one, wanted = paged(case, list(range(1, 60)), rows=rows)
    torch.testing.assert_close(one[rows], wanted[rows], atol=2e-6, rtol=1e-5)


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


def test_queries_and_keys_are_turned_by_their_positions() -> None:
    case = Case([(19, 1), (5, 6)], 4, 6, 2)
    made = step(case, list(range(1, 60)), turning(8))
    out = backend(case).plan(made.metadata).attend(made.kv_layer, made.qkv, made.rotary)
    torch.testing.assert_close(out, made.expected, atol=2e-6, rtol=1e-5)
