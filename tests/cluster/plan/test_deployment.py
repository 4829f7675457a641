"""Plans of the family against the published tables, and the settings offered where they fail."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.plan.deployment import FP8_WEIGHTS, Deployment, advice, remedies
from cluster.plan.devices import CPU, find_device
from cluster.plan.memory import GIB, PRECISIONS, ModelShape
from cluster.plan.models import find_model


def deployment(model: str = "32b", device: str = "H100-80", **settings: Any) -> Deployment:
    known, spec = find_model(model), find_device(device)
    assert known is not None
    assert spec is not None
    return Deployment(known.shape, known.max_position, spec, **settings)


@pytest.mark.parametrize(
    ("device", "precision", "thousands"),
    [
        ("H100-80", "bf16", (40, 329, 909, 2068)),
        ("H100-96", "bf16", (98, 446, 1141, 2532)),
        ("H200", "bf16", (269, 788, 1825, 3901)),
        ("H100-80", "fp8", (159, 449, 1028, 2187)),
        ("H100-96", "fp8", (217, 565, 1260, 2651)),
        ("H200", "fp8", (388, 907, 1944, 4020)),
    ],
)
def test_tokens_that_fit_the_32b(device: str, precision: str, thousands: tuple[int, ...]) -> None:
    for tp, expected in zip((1, 2, 4, 8), thousands, strict=True):
        found = deployment(device=device, tp=tp, precision=PRECISIONS[precision])
        assert found.kv_tokens / 1000 == pytest.approx(expected, abs=1)


def test_one_h100_in_bf16_cannot_hold_the_whole_context_but_these_can() -> None:
    alone = deployment(max_model_len=131_072)
    assert not alone.fits
    assert "max_model_len 131,072 does not fit: the longest context is 39,728" in str(alone.problem)
    offered = remedies(alone)
    assert offered[0] == f"max_model_len: {alone.longest_context}"
    assert offered[1:] == ["tensor_parallel_size: 2", FP8_WEIGHTS]
    assert deployment(device="H200", max_model_len=131_072).concurrency(131_072) == 2


def test_four_cards_of_24_gib_hold_65536_but_not_the_whole_context() -> None:
    cards = deployment(device="RTX-4090", tp=4)
    assert not replace(cards, max_model_len=131_072).fits
    assert replace(cards, max_model_len=65_536).fits
    offered = remedies(replace(cards, max_model_len=131_072))
    assert "tensor_parallel_size: 8" in offered
    assert all(changed(replace(cards, max_model_len=131_072), line).fits for line in offered)


def test_weights_that_do_not_fit_are_offered_more_ranks() -> None:
    card = deployment(device="RTX-4090")
    assert card.longest_context == 0
    assert "leave no room for KV" in str(card.problem)
    assert remedies(card)[0] == "tensor_parallel_size: 4"


def test_where_no_setting_helps_other_devices_are_named_the_cheapest_first() -> None:
    asked = deployment("llama-70b", "L4", max_model_len=131_072)
    offered = remedies(replace(asked, device=replace(asked.device, memory_gib=8.0)))
    assert offered == ["8 x RTX-5090", "4 x A100-80", "2 x H200"]
    for line in offered:
        assert changed(asked, line).fits


def test_advice_holds_the_engines_own_settings_alone() -> None:
    asked = deployment(max_model_len=131_072)
    assert advice(asked) == (
        f"; what would fit: max_model_len: {asked.longest_context} or tensor_parallel_size: 2 or "
        f"{FP8_WEIGHTS}"
    )
    assert advice(deployment("llama-70b", "L4", tp=8, utilization=0.1)) == ""


def test_every_remedy_is_a_setting_that_fits() -> None:
    for model in ("1.5b", "7b", "14b", "32b", "llama-8b", "llama-70b"):
        for device in ("A100-40", "H100-80", "L40S", "RTX-4090", "B200"):
            asked = deployment(model, device, max_model_len=131_072)
            if asked.fits:
                continue
            for line in remedies(asked):
                assert changed(asked, line).fits, (model, device, line)


def changed(asked: Deployment, line: str) -> Deployment:
    """`asked` with the settings that a remedy names."""
    if " x " in line:
        count, _, name = line.partition(" x ")
        spec = find_device(name)
        assert spec is not None
        return replace(asked, device=spec, tp=int(count))
    for part in line.split(", "):
        name, _, value = part.partition(": ")
        if name == "max_model_len":
            asked = replace(asked, max_model_len=int(value))
        elif name == "tensor_parallel_size":
            asked = replace(asked, tp=int(value))
        else:
            assert part == FP8_WEIGHTS
            asked = replace(asked, precision=replace(asked.precision, linear=1))
    return asked


def test_ranks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor_parallel_size 3 .*1, 2, 4, 8"):
        _ = deployment(tp=3).fits


def test_more_than_the_models_positions_is_refused_with_their_number() -> None:
    asked = deployment(tp=8, max_model_len=200_000)
    assert "131,072 positions" in str(asked.problem)
    assert remedies(asked) == ["max_model_len: 131072"]


def test_concurrency_counts_whole_blocks() -> None:
    found = deployment(tp=2)
    assert found.concurrency(2048) == (found.kv_tokens // 16 - 1) // 128
    assert found.concurrency(2049) == (found.kv_tokens // 16 - 1) // 129


def test_a_cpu_keeps_a_quarter_of_the_free_memory_for_kv_and_two_gib_at_most() -> None:
    host = replace(CPU, memory_gib=16.0)
    small = deployment("1.5b", max_model_len=4096, precision=PRECISIONS["bf16"])
    small = replace(small, device=host)
    taken = small.weight_bytes + small.overhead_bytes
    assert small.kv_room == min(int((16 * GIB - taken) * 0.25), 2 * GIB) == 2 * GIB
    assert replace(small, tp=2).kv_room == GIB
    assert replace(small, kv_cache_bytes=GIB).kv_room == GIB


def test_a_cpu_that_has_the_memory_is_offered_a_larger_cache() -> None:
    host = replace(CPU, memory_gib=64.0)
    asked = replace(deployment("1.5b", max_model_len=131_072), device=host)
    assert not asked.fits
    line = remedies(asked)[1]
    name, _, value = line.partition(": ")
    assert name == "kv_cache_gib"
    assert replace(asked, kv_cache_bytes=int(float(value) * GIB)).fits


def test_a_cpu_rank_takes_what_was_measured() -> None:
    """126 M parameters, 32 requests of 512 tokens: 756 MiB resident while serving, of which some 85
    were pages of program files."""
    shape = ModelShape(768, 12, 12, 4, 64, 2048, 32_768)
    rank = Deployment(shape, 4096, CPU, max_model_len=512, max_num_seqs=32, knows_words=False)
    assert rank.kv_pool_bytes / 2**20 == pytest.approx(192, abs=1)
    assert rank.rank_bytes / 2**20 == pytest.approx(671, rel=0.05)


def test_ranks_that_follow_grammars_hold_the_vocabulary() -> None:
    """The tokenizer of 65,536 words: 104 MB resident."""
    shape = ModelShape(1024, 4, 16, 8, 64, 2816, 65_536)
    with_words = Deployment(shape, 2048, CPU)
    without = replace(with_words, knows_words=False)
    assert with_words.overhead_bytes - without.overhead_bytes == pytest.approx(104e6, rel=0.02)


def test_few_requests_need_a_small_cache() -> None:
    found = deployment("1.5b", "cpu", max_model_len=256, max_num_seqs=8)
    assert found.kv_pool_bytes == (8 * 16 + 1) * 16 * found.token_bytes
    assert found.rank_bytes == found.weight_bytes + found.overhead_bytes + found.kv_pool_bytes
