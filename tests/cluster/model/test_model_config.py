import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.model.model_config import (
    Llama3Scaling,
    UnsupportedModelError,
    read_model_config,
)

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
LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA_8B = {
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": LLAMA3,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "pretraining_tp": 1,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}
SCALING = Llama3Scaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
)


def write(folder: Path, base: dict[str, Any] = BASE, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**base, **changes}))
    return folder


def test_the_published_config_of_the_32b_is_read(tmp_path: Path) -> None:
    config = read_model_config(write(tmp_path))
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (40, 8, 128)
    assert (config.rope_theta, config.rms_norm_eps) == (1e6, 1e-5)
    assert config.eos_token_ids == (151643,)
    assert config.shape.num_params == 32_763_876_352


def test_the_published_config_of_the_llama_8b_is_read(tmp_path: Path) -> None:
    config = read_model_config(write(tmp_path, LLAMA_8B))
    assert (config.architecture, config.qkv_bias) == ("llama", False)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 8, 128)
    assert (config.rope_theta, config.rope_scaling) == (5e5, SCALING)
    assert config.shape.num_params == 8_030_261_248


def test_what_transformers_5_writes_of_a_llama_is_read(tmp_path: Path) -> None:
    newer = {**LLAMA3, "rope_theta": 5e5}
    changes = {"rope_theta": None, "rope_scaling": None, "rope_parameters": newer}
    config = read_model_config(write(tmp_path, LLAMA_8B, **changes))
    assert (config.rope_theta, config.rope_scaling) == (5e5, SCALING)


def test_the_older_field_counts_where_both_are_given_as_in_transformers(tmp_path: Path) -> None:
    both = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    config = read_model_config(write(tmp_path, LLAMA_8B, **both))
    assert (config.rope_theta, config.rope_scaling) == (5e5, SCALING)


def test_the_old_context_is_the_models_own_where_nothing_says_it(tmp_path: Path) -> None:
    shorter = {name: LLAMA3[name] for name in LLAMA3 if not name.startswith("original")}
    config = read_model_config(write(tmp_path, LLAMA_8B, rope_scaling=shorter))
    assert config.rope_scaling is not None
    assert config.rope_scaling.original_max_position == 131072


def test_positions_default_as_in_transformers(tmp_path: Path) -> None:
    for base, positions in ((BASE, 32768), (LLAMA_8B, 2048)):
        config = read_model_config(write(tmp_path, base, max_position_embeddings=None))
        assert config.max_position == positions


def test_qwen_has_its_biases_whatever_attention_bias_says(tmp_path: Path) -> None:
    assert read_model_config(write(tmp_path, attention_bias=False)).qkv_bias
    assert read_model_config(write(tmp_path, attention_bias=True)).qkv_bias


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
        ({"model_type": "gemma3"}, "model_type is 'gemma3'; this engine computes qwen2 and llama"),
        ({"model_type": 3}, "Expected `str`"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4}},
            r"rope_scaling\.rope_type 'yarn'.*llama",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, r"rope_parameters\.rope_type 'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1}}}, r"\.full_attention .*layers"),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta 'big'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor 0.25"),
        ({"quantization_config": {"quant_method": "awq", "w_bit": 4}}, "are awq, 4 bits.*fp8"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "are gptq, 3 bits.*int8"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"are fp8\. .*use the bfloat16"),
        ({"quantization_config": {"bits": 4}}, "unnamed method, 4 bits"),
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


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"rope_scaling": {**LLAMA3, "factor": None}}, r"rope_scaling\.factor None"),
        ({"rope_scaling": {**LLAMA3, "factor": 0.5}}, r"factor 0\.5.*1 or more"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": "1"}}, "low_freq_factor '1'"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, r"high_freq_factor 1\.0.*\(1\.0\)"),
        ({"rope_scaling": {**LLAMA3, "rope_type": "longrope"}}, "'longrope'"),
    ],
)
def test_a_llama_that_would_be_computed_wrongly_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=complaint) as refusal:
        read_model_config(write(tmp_path, LLAMA_8B, **changes))
    assert "config.json" in str(refusal.value)


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        read_model_config(tmp_path)
