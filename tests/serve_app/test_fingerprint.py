"""The fingerprint follows weights and settings, not places."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.config import EngineConfig
from serve_app import fingerprint
from serve_app.fingerprint import system_fingerprint


def checkpoint(folder: Path, weights: bytes) -> EngineConfig:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return EngineConfig(model_path=str(folder))


def test_it_follows_weights_and_settings_but_not_the_folder(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "a", b"x" * 3_000_000 + b"1")
    same = checkpoint(tmp_path / "b", b"x" * 3_000_000 + b"1")
    retrained = checkpoint(tmp_path / "c", b"x" * 3_000_000 + b"2")
    assert system_fingerprint(one) == system_fingerprint(same)
    assert system_fingerprint(one) != system_fingerprint(retrained)
    halved = EngineConfig(model_path=one.model_path, tensor_parallel_size=2)
    assert system_fingerprint(one) != system_fingerprint(halved)


@pytest.mark.parametrize(
    "change",
    [
        {"tensor_parallel_size": 2},
        {"block_size": 32},
        {"quantization": "int8"},
        {"dtype": "float32"},
        {"deterministic": True},
        {"kernels": "torch"},
    ],
    ids=str,
)
def test_whatever_may_change_an_answer_changes_it(tmp_path: Path, change: dict[str, Any]) -> None:
    config = checkpoint(tmp_path / "a", b"x")
    changed = msgspec.structs.replace(config, **change)
    assert system_fingerprint(config) != system_fingerprint(changed)


def test_it_follows_the_kernels_that_replicas_report(tmp_path: Path) -> None:
    config = checkpoint(tmp_path / "a", b"x")
    one = system_fingerprint(config, ["native fp32fma"])
    assert one == system_fingerprint(config, ["native fp32fma", "native fp32fma"])
    assert one != system_fingerprint(config, ["native bf16dot"])
    assert one != system_fingerprint(config)


def test_another_way_to_draw_from_seeds_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = checkpoint(tmp_path / "a", b"x")
    before = system_fingerprint(config)
    monkeypatch.setattr(fingerprint, "SEED_ALGORITHM", fingerprint.SEED_ALGORITHM + 1)
    assert system_fingerprint(config) != before
