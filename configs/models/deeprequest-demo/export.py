"""Writes the checkpoint folder: weights, configurations, tokenizer and chat template.

Owns the file formats. Knows nothing of training.
"""

import hashlib
import json
from pathlib import Path

import torch
from build_tokenizer import ASSISTANT, BOS, END_THINK, EOS, THINK, USER, build
from network import Shape
from safetensors.torch import save_file
from torch import Tensor

CONTEXT = 4096
TEMPLATE = (
    "{%- set texts = namespace(system='') -%}"
    "{%- for message in messages if message['role'] == 'system' -%}"
    "{%- set join = '\\n\\n' if texts.system else '' -%}"
    "{%- set texts.system = texts.system ~ join ~ message['content'] -%}"
    "{%- endfor -%}"
    "{{- bos_token ~ texts.system -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    f"{{{{- '{USER}' ~ message['content'] -}}}}"
    "{%- elif message['role'] == 'assistant' -%}"
    f"{{{{- '{ASSISTANT}' ~ message['content'].split('{END_THINK}')[-1] ~ eos_token -}}}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{- '{ASSISTANT}{THINK}\\n' -}}}}{{%- endif -%}}"
)
CHECKED_FILES = (
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "golden.jsonl",
)


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_configurations(folder: Path, shape: Shape) -> None:
    """config.json, generation_config.json, tokenizer.json and tokenizer_config.json."""
    tokenizer = build()
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.rows,
        "max_position_embeddings": CONTEXT,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "bfloat16",
    }
    write_json(folder / "config.json", config)
    generation: dict[str, object] = {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    write_json(folder / "generation_config.json", generation)
    tokenizer_config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)


def write_weights(path: Path, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """The parameters under transformers' names."""
    cast = {name: weight.detach().to(dtype).contiguous() for name, weight in weights.items()}
    save_file(cast, str(path), metadata={"format": "pt"})


def write_checksums(folder: Path) -> None:
    """SHA256SUMS, as `sha256sum -c` reads it, of the files that exist."""
    files = [name for name in CHECKED_FILES if (folder / name).exists()]
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in files
    ]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
