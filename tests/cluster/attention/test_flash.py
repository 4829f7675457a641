"""The adapters of flash-attn, by modules that hold them to the library's contract."""

from tests.cluster import triton_interpreter  # isort: skip

import dataclasses

import pytest
import torch

from cluster.attention.backend import AttentionBackend
from cluster.attention.flash import Flash2Attention, Flash3Attention
from cluster.worker.graphs.decode_buffers import DecodeBuffers
from tests.cluster.attention.fake_flash import Flash2, Flash3
from tests.cluster.attention.textbook import Case, step, turning

assert triton_interpreter
MIXED = [(300, 1), (255, 1), (3, 1), (0, 7), (250, 12)]
STEPS = [MIXED, MIXED[:3], MIXED[3:]]


def flash(generation: int, case: Case, *, deterministic: bool = False) -> AttentionBackend:
    shape = case.shape(torch.float16)
    if generation == 2:
        return Flash2Attention(Flash2(), case.block_size, shape, deterministic)
    return Flash3Attention(Flash3(), shape, deterministic)


@pytest.mark.parametrize("requests", STEPS, ids=["mixed", "decodes", "chunks"])
@pytest.mark.parametrize(("generation", "page"), [(2, 256), (3, 256), (3, 16)])
def test_what_the_library_is_asked_for_is_the_textbooks_attention(
    generation: int, page: int, requests: list[tuple[int, int]]
) -> None:
    case = Case(requests, page, 10, 2, 16)
    made = step(case, list(range(case.num_blocks, 0, -1)), turning(16))
    plan = flash(generation, case).plan(made.metadata)
    out = plan.attend(made.kv_layer.half(), made.qkv.half(), made.rotary)
    assert out.shape == made.expected.shape
    torch.testing.assert_close(out.float(), made.expected, atol=5e-3, rtol=5e-3)


def test_a_plan_of_drafts_follows_its_buffers_and_pads_with_zeros() -> None:
    case = Case([(300, 3), (40, 1)], 256, 5, 1, 16)
    made = step(case, [3, 1, 2], turning(16))
    backend = flash(3, case)
    assert backend.captured_queries >= 9
    assert flash(2, case).captured_queries == 1
    buffers = DecodeBuffers(6, 2, torch.device("cpu"))
    plan = backend.plan(buffers.metadata(6, 9, 512))
    buffers.fill(torch.zeros(4, dtype=torch.int64), made.metadata, 6)
    qkv = torch.cat((made.qkv, made.qkv[:2])).half()
    out = plan.attend(made.kv_layer.half(), qkv, made.rotary)
    torch.testing.assert_close(out[:4].float(), made.expected, atol=5e-3, rtol=5e-3)
    assert not out[4:].any()


@pytest.mark.parametrize("generation", [2, 3])
def test_a_plan_of_decodes_follows_its_buffers_and_pads_with_zeros(generation: int) -> None:
    case = Case([(300, 1), (40, 1)], 256, 5, 1, 16)
    made = step(case, [3, 1, 2], turning(16))
    backend = flash(generation, case)
    buffers = dataclasses.replace(made.metadata, seq_lens_k=torch.tensor([9, 9], dtype=torch.int32))
    plan = backend.plan(buffers)
    assert backend.captured_queries >= 1
    buffers.seq_lens_k.copy_(torch.tensor([301, 0]))
    out = plan.attend(made.kv_layer.half(), made.qkv.half(), made.rotary)
    torch.testing.assert_close(out[0].float(), made.expected[0], atol=5e-3, rtol=5e-3)
    assert not out[1].any()


@pytest.mark.parametrize("generation", [2, 3])
def test_splits_are_fixed_in_deterministic_mode_and_said_to_be(generation: int) -> None:
    case = Case([(3, 1)], 256, 5, 1, 16)
    assert flash(generation, case, deterministic=True).signature.endswith("1 split")
    assert flash(generation, case).signature.endswith("splits by load")


def test_pages_that_flash2_cannot_read_are_refused_with_those_it_can() -> None:
    with pytest.raises(ValueError, match=r"block_size: 64 is no multiple of 256, .* 256 works"):
        flash(2, Case([(3, 1)], 64, 5, 1, 16))
