"""The plan of a rank, as it is held against this machine."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import EngineConfig
from cluster.device import Device
from cluster.model.model_config import read_model_config
from cluster.plan.deployment import Deployment
from cluster.plan.memory import GIB
from cluster.worker.sizing import (
    advised,
    check_weights,
    device_spec,
    log_memory,
    plan_rank,
    used_bytes,
)


@pytest.fixture
def device() -> Device:
    return Device.select("cpu", 0)


def planned(folder: Path, device: Device, **settings: object) -> tuple[EngineConfig, Deployment]:
    config = EngineConfig(**{"model_path": str(folder), **settings})  # type: ignore[arg-type]
    return config, plan_rank(config, read_model_config(folder), device_spec(device), 4, False)


def test_settings_become_a_plan_of_this_machine(tiny_checkpoint: Path, device: Device) -> None:
    config, plan = planned(tiny_checkpoint, device, tensor_parallel_size=2, kv_cache_gib=0.5)
    assert plan.device.memory_bytes == pytest.approx(device.total_memory(), rel=1e-9)
    assert plan.device.is_cpu
    assert (plan.tp, plan.kv_room, plan.max_num_seqs) == (2, GIB // 4, config.max_num_seqs)
    assert plan.weight_bytes < plan.shape.num_params * 4
    _, blocks = planned(tiny_checkpoint, device, num_kv_blocks=10, block_size=16)
    assert blocks.kv_tokens == 160
    _, narrow = planned(tiny_checkpoint, device, num_kv_blocks=10, kv_cache_dtype="fp8")
    assert narrow.kv_tokens == 160
    assert narrow.token_bytes * 4 == blocks.token_bytes


def test_weights_beyond_the_device_are_refused_before_they_are_read(
    tiny_checkpoint: Path, device: Device
) -> None:
    _, plan = planned(tiny_checkpoint, device)
    check_weights(plan)
    with pytest.raises(ValueError, match=r"GiB of weights a rank do not fit 0\.00 GiB"):
        check_weights(replace(plan, device=replace(plan.device, memory_gib=1e-6)))


def test_a_sizing_error_names_settings_that_would_fit(
    tiny_checkpoint: Path, device: Device
) -> None:
    config, plan = planned(tiny_checkpoint, device, max_model_len=200, kv_cache_gib=0.0001)
    with (
        pytest.raises(ValueError, match=r"too long; what would fit: .*kv_cache_gib: 0\.1"),
        advised(plan, config),
    ):
        raise ValueError("too long")
    config, plan = planned(tiny_checkpoint, device, max_model_len=200, num_kv_blocks=3)
    with pytest.raises(ValueError, match=r"^too long$"), advised(plan, config):
        raise ValueError("too long")


def test_memory_in_use_is_told_beside_the_plan(
    tiny_checkpoint: Path, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    _, plan = planned(tiny_checkpoint, device)
    assert used_bytes(device) > 50 * 2**20
    with caplog.at_level(logging.INFO):
        log_memory(plan, device, 1, GIB)
    assert "rank 1: " in caplog.text
    assert "KV cache of 1.00 GiB included (planned: 1." in caplog.text
