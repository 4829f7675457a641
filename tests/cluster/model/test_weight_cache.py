"""The second start reads what the first one held, or nothing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster.model.weight_cache import WeightCache, cache_key


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "a.packed": torch.full((3, 5), value, dtype=torch.bfloat16),
        "a.scale": torch.arange(7.0) * value,
        "b": torch.full((2, 2), 3, dtype=torch.int8),
    }


@pytest.fixture
def cache(tmp_path: Path) -> WeightCache:
    return WeightCache(tmp_path / "new" / "folder", "0" * 32, 1, 2)


def test_what_was_saved_is_loaded_bit_by_bit(cache: WeightCache) -> None:
    cache.save(tensors(2.5))
    target = tensors(0.0)
    assert cache.load(target)
    assert all(torch.equal(target[name], saved) for name, saved in tensors(2.5).items())


def test_the_file_is_a_safetensors_file(cache: WeightCache) -> None:
    cache.save(tensors(2.5))
    assert torch.equal(load_file(cache.path)["a.scale"], tensors(2.5)["a.scale"])


def test_without_a_file_nothing_is_loaded(cache: WeightCache) -> None:
    assert not cache.load(tensors())


def test_another_layout_is_not_loaded(cache: WeightCache) -> None:
    cache.save(tensors())
    other = tensors() | {"b": torch.zeros(4, 1, dtype=torch.int8)}
    assert not cache.load(other)


@pytest.mark.parametrize("damage", ["flip", "cut", "garbage", "no sums"])
def test_a_damaged_file_is_not_loaded(cache: WeightCache, damage: str) -> None:
    cache.save(tensors())
    content = cache.path.read_bytes()
    if damage == "flip":
        cache.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        cache.path.write_bytes(content[:-3])
    elif damage == "garbage":
        cache.path.write_bytes(b"\xff" * 100)
    else:
        cache.path.with_suffix(".crc32.json").unlink()
    assert not cache.load(tensors())


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    WeightCache(tmp_path / "file", "0" * 32, 0, 1).save(tensors())
    assert "cannot be written" in caplog.text


def test_the_key_follows_the_checkpoint_and_the_facts(tiny_checkpoint: Path) -> None:
    key = cache_key(tiny_checkpoint, ["native", 2])
    assert key == cache_key(tiny_checkpoint, ["native", 2])
    assert key != cache_key(tiny_checkpoint, ["native", 4])
    content = (tiny_checkpoint / "config.json").read_bytes()
    (tiny_checkpoint / "config.json").write_bytes(content + b"\n")
    assert key != cache_key(tiny_checkpoint, ["native", 2])
    (tiny_checkpoint / "config.json").write_bytes(content)
