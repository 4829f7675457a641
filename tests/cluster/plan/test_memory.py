"""Bytes and refusals against the published figures of DeepSeek-R1-Distill-Qwen-32B."""

import pytest

from cluster.plan.memory import (
    GIB,
    ModelShape,
    Precision,
    check_tensor_parallel_size,
    fit_max_model_len,
    kv_bytes_per_token,
    kv_room,
    longest_sequence,
    num_kv_blocks,
    tensor_parallel_sizes,
    weight_bytes,
)
from cluster.plan.models import MODELS

R1_32B = next(model.shape for model in MODELS if model.name == "deepseek-r1-32b")
FP8 = Precision(linear=1)


def test_parameters_are_counted_as_the_hub_counts_them() -> None:
    assert R1_32B.num_params == 32_763_876_352


def test_tied_embeddings_are_counted_once() -> None:
    tied = ModelShape(896, 24, 14, 2, 64, 4864, 151936, tie_word_embeddings=True)
    assert tied.num_params == 494_032_768  # Qwen2.5-0.5B


@pytest.mark.parametrize(
    ("tp", "bf16_gb", "fp8_gb", "token_bytes"),
    [
        (1, 65.53, 34.32, 262_144),
        (2, 32.76, 17.16, 131_072),
        (4, 16.38, 8.58, 65_536),
        (8, 8.19, 4.29, 32_768),
    ],
)
def test_weights_and_kv_bytes_of_the_32b(
    tp: int, bf16_gb: float, fp8_gb: float, token_bytes: int
) -> None:
    assert weight_bytes(R1_32B, tp) / 1e9 == pytest.approx(bf16_gb, abs=0.01)
    assert weight_bytes(R1_32B, tp, FP8) / 1e9 == pytest.approx(fp8_gb, abs=0.01)
    assert kv_bytes_per_token(R1_32B, tp) == token_bytes
    assert kv_bytes_per_token(R1_32B, tp, kv_bytes=4) == 2 * token_bytes


def test_weights_larger_than_the_device_leave_no_room() -> None:
    assert kv_room(24 * GIB, weight_bytes(R1_32B, 1)) == 0


def test_the_32b_is_split_by_1_2_4_and_8() -> None:
    assert tensor_parallel_sizes(R1_32B) == [1, 2, 4, 8]
    for size in (1, 2, 4, 8):
        check_tensor_parallel_size(R1_32B, size)


@pytest.mark.parametrize("size", [0, 3, 5, 6, 16])
def test_a_tensor_parallel_size_that_does_not_divide_is_refused_with_those_that_do(
    size: int,
) -> None:
    with pytest.raises(ValueError, match=rf"tensor_parallel_size {size} .*8 kv heads.*1, 2, 4, 8"):
        check_tensor_parallel_size(R1_32B, size)


def test_blocks_are_counted_with_the_dummy_block() -> None:
    assert num_kv_blocks(10 * 16 * 100 + 99, token_bytes=100, block_size=16) == 10
    assert longest_sequence(num_blocks=10, block_size=16) == 144


def test_a_pool_without_a_usable_block_is_refused_with_the_settings() -> None:
    with pytest.raises(ValueError, match=r"0\.00 GiB are left.*gpu_memory_utilization"):
        num_kv_blocks(0, token_bytes=262_144, block_size=16)


def test_the_context_is_what_model_and_pool_allow_when_nothing_is_asked() -> None:
    assert fit_max_model_len(None, 4096, num_blocks=1000, block_size=16) == 4096
    assert fit_max_model_len(None, 4096, num_blocks=11, block_size=16) == 160


def test_a_context_that_fits_is_kept() -> None:
    assert fit_max_model_len(160, 4096, num_blocks=11, block_size=16) == 160


def test_a_context_that_does_not_fit_is_refused_with_the_number_that_does() -> None:
    with pytest.raises(ValueError, match=r"161 does not fit.*160 tokens \(10 blocks of 16\)"):
        fit_max_model_len(161, 4096, num_blocks=11, block_size=16)


@pytest.mark.parametrize("asked", [0, -1, 4097])
def test_a_context_beyond_the_positions_is_refused(asked: int) -> None:
    with pytest.raises(ValueError, match="4096 positions"):
        fit_max_model_len(asked, 4096, num_blocks=1000, block_size=16)
