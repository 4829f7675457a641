"""EngineConfig refuses what cannot work, by name."""

from typing import Any

import msgspec
import pytest

from cluster.config import EngineConfig


def test_a_model_path_is_enough() -> None:
    config = EngineConfig(model_path="models/tiny")
    assert (config.tensor_parallel_size, config.block_size) == (1, 16)


def test_it_holds_at_most_thirty_settings() -> None:
    assert len(EngineConfig.__struct_fields__) <= 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be at least 1, not 0"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"threads_per_rank": -1}, "threads_per_rank must be at least 1"),
        ({"block_size": 0}, "block_size must be a power of two, not 0"),
        ({"block_size": 24}, "block_size must be a power of two, not 24"),
        (
            {"max_num_seqs": 65, "max_num_batched_tokens": 64},
            r"max_num_batched_tokens \(64\) must be at least max_num_seqs \(65\)",
        ),
        ({"cuda_graph_sizes": (0,)}, r"cuda_graph_sizes must lie .* max_num_seqs \(64\)"),
        ({"cuda_graph_sizes": (1, 65)}, "set it to \\[\\] for no graphs"),
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization"),
    ],
)
def test_a_setting_out_of_bounds_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(model_path="models/tiny", **settings)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `tensor_paralel_size`"):
        msgspec.convert({"model_path": "m", "tensor_paralel_size": 2}, EngineConfig)


def test_a_device_that_does_not_exist_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="device"):
        msgspec.convert({"model_path": "m", "device": "abacus"}, EngineConfig)


def test_it_cannot_be_changed() -> None:
    config = EngineConfig(model_path="models/tiny")
    with pytest.raises(AttributeError):
        config.block_size = 32  # type: ignore[misc]
