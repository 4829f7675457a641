"""Floors of a decode step against the worked table of DeepSeek-R1-Distill-Qwen-32B."""

from dataclasses import replace

import pytest

from cluster.plan.devices import find_device
from cluster.plan.memory import PRECISIONS
from cluster.plan.models import find_model
from cluster.plan.speed import Machine, decode_seconds, prefill_seconds

model = find_model("32b")
assert model is not None
R1_32B = model.shape
TABLE = [
    # device, precision, tp, ms at batch 1, 32, 128, 256; with 2,048 tokens in each request's cache;
    # fp8: layers alone, the lm_head stays in bfloat16
    ("H100-80", "bf16", 1, (19.10, 24.2, 39.6, 60.1)),
    ("H100-80", "bf16", 2, (10.06, 13.3, 22.4, 33.9)),
    ("H100-80", "bf16", 4, (5.35, 7.6, 12.4, 18.5)),
    ("H100-80", "bf16", 8, (3.16, 5.2, 7.8, 11.6)),
    ("H100-80", "fp8", 1, (9.78, 14.9, 30.3, 50.8)),
    ("H100-80", "fp8", 8, (2.00, 4.1, 6.6, 10.5)),
    ("H200", "bf16", 1, (13.33, 16.9, 27.6, 42.0)),
    ("H200", "bf16", 2, (7.18, 9.6, 16.4, 24.9)),
    ("H200", "bf16", 4, (3.91, 5.8, 9.4, 14.0)),
    ("H200", "bf16", 8, (2.44, 4.3, 6.3, 9.4)),
    ("H200", "fp8", 4, (2.29, 4.1, 7.7, 12.3)),
]


def machine(device: str, tp: int, precision: str) -> Machine:
    spec = find_device(device)
    assert spec is not None
    return spec.machine(tp, PRECISIONS[precision].linear)


@pytest.mark.parametrize(("device", "precision", "tp", "milliseconds"), TABLE)
def test_decode_floor_of_the_32b(
    device: str, precision: str, tp: int, milliseconds: tuple[float, ...]
) -> None:
    for batch, expected in zip((1, 32, 128, 256), milliseconds, strict=True):
        seconds = decode_seconds(
            R1_32B,
            machine(device, tp, precision),
            tp,
            batch=batch,
            context=0 if batch == 1 else 2048,
            precision=PRECISIONS[precision],
        )
        assert seconds * 1000 == pytest.approx(expected, abs=0.07 if batch > 1 else 0.011)


def test_a_large_batch_is_bound_by_arithmetic() -> None:
    slow = replace(machine("H100", 1, "bf16"), flops=80e12)
    assert decode_seconds(R1_32B, slow, 1, batch=256, context=0) == pytest.approx(
        2 * 256 * 31.98e9 / 80e12, rel=1e-3
    )


def test_ranks_without_a_link_wait_for_nobody() -> None:
    alone = replace(machine("H100", 1, "bf16"), link=None)
    whole = decode_seconds(R1_32B, alone, 1, batch=1, context=0)
    assert decode_seconds(R1_32B, alone, 4, batch=1, context=0) == pytest.approx(whole / 4)


def test_a_prompt_takes_its_products_and_its_attention() -> None:
    fast = replace(machine("H100", 1, "bf16"), bytes_per_second=1e18)
    seconds = prefill_seconds(R1_32B, fast, 1, length=2048)
    linears = 2 * 2048 * 64 * 487_587_840
    attention = 2 * 2048**2 * 40 * 128 * 64
    assert seconds == pytest.approx((linears + attention + 2 * 152_064 * 5120) / 800e12)


def test_a_short_prompt_is_bound_by_reading_the_weights() -> None:
    seconds = prefill_seconds(R1_32B, machine("H100", 1, "bf16"), 1, length=1)
    assert seconds == pytest.approx(64 * 487_587_840 * 2 / 3.35e12, rel=1e-3)
