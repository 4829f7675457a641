"""The fingerprint follows weights and settings, not places."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.config import EngineConfig
from serve_app import fingerprint
from serve_app.fingerprint import Fingerprint


def checkpoint(folder: Path, weights: bytes) -> EngineConfig:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return EngineConfig(model_path=str(folder))


def named(config: EngineConfig, kernels: Sequence[str] = (), *, closing_words: str = "") -> str:
    return Fingerprint(config, closing_words=closing_words).name(kernels)


def test_it_follows_weights_and_settings_but_not_the_folder(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "a", b"x" * 3_000_000 + b"1")
    same = checkpoint(tmp_path / "b", b"x" * 3_000_000 + b"1")
    retrained = checkpoint(tmp_path / "c", b"x" * 3_000_000 + b"2")
    assert named(one) == named(same)
    assert named(one) != named(retrained)
    halved = EngineConfig(model_path=one.model_path, tensor_parallel_size=2)
    assert named(one) != named(halved)


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
    assert named(config) != named(changed)


def test_it_follows_the_words_with_which_thoughts_are_closed(tmp_path: Path) -> None:
    config = checkpoint(tmp_path / "a", b"x")
    assert named(config, closing_words="So.") != named(config)


def test_it_follows_the_kernels_that_replicas_report(tmp_path: Path) -> None:
    config = checkpoint(tmp_path / "a", b"x")
    one = named(config, ["native fp32fma"])
    assert one == named(config, ["native fp32fma", "native fp32fma"])
    assert one != named(config, ["native bf16dot"])
    assert one != named(config)


def test_another_way_to_draw_from_seeds_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = checkpoint(tmp_path / "a", b"x")
    before = named(config)
    monkeypatch.setattr(fingerprint, "SEED_ALGORITHM", fingerprint.SEED_ALGORITHM + 1)
    assert named(config) != before
