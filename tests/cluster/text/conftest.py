"""A synthetic checkpoint of the R1 distills' shape: byte-level BPE with merges and markers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from cluster.text.tokenizer import (
    ASSISTANT,
    BOS,
    EOS,
    THINK_END,
    THINK_START,
    USER,
    Tokenizer,
)

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "How many r's are in the word 'strawberry'? Let me think about the word letter by letter.\n\n",
    "the assistant thinks; the user asks. <think> is a tag, </think> is another one.\n\n\n",
    "naïve café, 日本語 日本 你好, 👩‍👩‍👧 🙂🙂 👍🏽, e\u0301 a\u0300.",
]
TEMPLATE = """
{%- set found = namespace(system='') -%}
{%- for turn in messages if turn.role == 'system' -%}{%- set found.system = turn.content -%}
{%- endfor -%}
{{- bos_token + found.system -}}
{%- for turn in messages -%}
{%- if turn.role == 'user' -%}{{- USER + turn.content -}}{%- endif -%}
{%- if turn.role == 'assistant' -%}
{{- ASSISTANT + turn.content.split('</think>')[-1] + EOS -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ASSISTANT + '<think>\\n' -}}{%- endif -%}
"""
for name, marker in (("USER", USER), ("ASSISTANT", ASSISTANT), ("EOS", EOS)):
    TEMPLATE = TEMPLATE.replace(name, repr(marker))

Checkpoint = Callable[..., Path]


def build_spec() -> dict[str, Any]:
    """tokenizer.json of the family: which markers are flagged special is as in the real one."""
    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    built.train_from_iterator(CORPUS, trainer)
    special = {EOS, BOS}
    for text in (EOS, USER, ASSISTANT, BOS, "<|EOT|>", THINK_START, THINK_END):
        built.add_tokens([AddedToken(text, special=text in special, normalized=False)])
    built.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, built.token_to_id(BOS))]
    )
    spec: dict[str, Any] = json.loads(built.to_str())
    return spec


@pytest.fixture(scope="session")
def spec() -> dict[str, Any]:
    return build_spec()


@pytest.fixture(scope="session")
def checkpoint(spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Writes a checkpoint folder; keywords replace whole files' objects, None leaves a file out."""
    ids = {token["content"]: token["id"] for token in spec["added_tokens"]}

    def write(**files: dict[str, Any] | None) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        objects: dict[str, dict[str, Any] | None] = {
            "tokenizer": spec,
            "tokenizer_config": {
                "add_bos_token": True,
                "bos_token": BOS,
                "eos_token": EOS,
                "tokenizer_class": "LlamaTokenizerFast",
                "model_max_length": 16384,
                "chat_template": TEMPLATE,
            },
            "generation_config": {"bos_token_id": ids[BOS], "eos_token_id": ids[EOS]},
            "config": {
                "model_type": "qwen2",
                "bos_token_id": ids[EOS],
                "eos_token_id": ids[EOS],
            },
            **files,
        }
        for name, value in objects.items():
            if value is not None:
                (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
        return folder

    return write


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer(checkpoint())
