"""The fingerprint follows weights and settings, not places."""

from pathlib import Path

from cluster.config import EngineConfig
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
