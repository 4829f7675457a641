import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.model.model_config import UnsupportedModelError, read_model_config

BASE = {
    "model_type": "qwen2",
    "hidden_size": 5120,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "intermediate_size": 27648,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-05,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "max_window_layers": 64,
    "tie_word_embeddings": False,
    "eos_token_id": 151643,
    "torch_dtype": "bfloat16",
}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**BASE, **changes}))
    return folder


def test_the_published_config_of_the_32b_is_read(tmp_path: Path) -> None:
    config = read_model_config(write(tmp_path))
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (40, 8, 128)
    assert (config.rope_theta, config.rms_norm_eps) == (1e6, 1e-5)
    assert config.eos_token_ids == (151643,)
    assert config.shape.num_params == 32_763_876_352


def test_what_transformers_writes_now_is_read(
    tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    config = read_model_config(write_checkpoint(tmp_path, rope_theta=5e5, head_dim=16))
    assert (config.rope_theta, config.head_dim, config.num_layers) == (5e5, 16, 2)


def test_rope_theta_is_found_under_rope_parameters(tmp_path: Path) -> None:
    newer = {"rope_theta": 7.0, "rope_type": "default"}
    assert read_model_config(write(tmp_path, rope_parameters=newer)).rope_theta == 7.0
    assert read_model_config(write(tmp_path, rope_theta=None)).rope_theta == 10_000.0


def test_end_ids_of_both_files_count(tmp_path: Path) -> None:
    write(tmp_path, eos_token_id=[4, 5])
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9, "temperature": 0.6}')
    assert read_model_config(tmp_path).eos_token_ids == (4, 5, 9)
    write(tmp_path, eos_token_id=None)
    assert read_model_config(tmp_path).eos_token_ids == (9,)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; this engine computes qwen2"),
        ({"model_type": 3}, "Expected `str`"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope scaling 'linear'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_key_value_heads": 7}, "do not fit together"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=complaint) as refusal:
        read_model_config(write(tmp_path, **changes))
    assert "config.json" in str(refusal.value)


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        read_model_config(tmp_path)
