"""Random checkpoints of a given shape, with a tokenizer, so that engines can be raced on them.

Owns the shapes of the benchmark table, and the files: bfloat16 weights drawn from a normal
distribution, config.json, and a byte-level tokenizer with DeepSeek R1's markers in which every id
below the markers is a byte or a word. Knows no engine.

    python -m tests.bench.checkpoints --shape 126m FOLDER
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from cluster.text.tokenizer import ASSISTANT, BOS, EOS, THINK_END, THINK_START, USER

SHARD_BYTES = 2 << 30
MARKERS = (EOS, USER, ASSISTANT, BOS, THINK_START, THINK_END)
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
    f"{{{{- '{ASSISTANT}' ~ message['content'].split('{THINK_END}')[-1] ~ eos_token -}}}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{- '{ASSISTANT}{THINK_START}\\n' -}}}}{{%- endif -%}}"
)


class Shape(NamedTuple):
    """A Qwen2 network; `head_dim` is `hidden / heads`."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool
    context: int

    @property
    def kv_width(self) -> int:
        return self.hidden // self.heads * self.kv_heads


SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 128, 1024, False, 2048),
    "126m": Shape(768, 12, 12, 4, 2048, 32_768, False, 8192),
    "1b5": Shape(1536, 28, 12, 2, 8960, 151_936, True, 32_768),
}
"""`tiny` is for tests; the others are the columns of the table."""


def make_checkpoint(folder: Path, shape: Shape, seed: int = 0) -> None:
    """Write weights, configurations and tokenizer; the same seed gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(shape.vocab)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_configurations(folder, shape, tokenizer)
    _write_weights(folder, random_weights(shape, seed))


def random_weights(shape: Shape, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under transformers' names: N(0, 0.02), norms one; bfloat16."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return (torch.randn(*size, generator=generator) * 0.02).to(torch.bfloat16)

    hidden, kv_width, wide = shape.hidden, shape.kv_width, shape.intermediate
    yield "model.embed_tokens.weight", draw(shape.vocab, hidden)
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        for part, rows in (("q", hidden), ("k", kv_width), ("v", kv_width)):
            yield f"{name}.self_attn.{part}_proj.weight", draw(rows, hidden)
            yield f"{name}.self_attn.{part}_proj.bias", draw(rows)
        yield f"{name}.self_attn.o_proj.weight", draw(hidden, hidden)
        yield f"{name}.mlp.gate_proj.weight", draw(wide, hidden)
        yield f"{name}.mlp.up_proj.weight", draw(wide, hidden)
        yield f"{name}.mlp.down_proj.weight", draw(hidden, wide)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.{norm}.weight", torch.ones(hidden, dtype=torch.bfloat16)
    yield "model.norm.weight", torch.ones(hidden, dtype=torch.bfloat16)
    if not shape.tied:
        yield "lm_head.weight", draw(shape.vocab, hidden)


def build_tokenizer(vocab: int) -> Tokenizer:
    """`vocab` ids: 256 bytes, made-up words with their blank in front, then the markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    blank = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    space = blank.pre_tokenize_str(" ")[0][0]
    words = [space + word(number) for number in range(vocab - len(alphabet) - len(MARKERS))]
    pieces = {piece: number for number, piece in enumerate(alphabet + words)}
    merges = [(piece[:-1], piece[-1]) for piece in words]
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=merges))
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\s|[^\s\p{L}]"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, blank])
    tokenizer.decoder = decoders.ByteLevel()
    for marker in MARKERS:
        special = marker in (EOS, BOS)
        tokenizer.add_tokens([AddedToken(marker, special=special, normalized=False)])
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    return tokenizer


def word(number: int) -> str:
    """The made-up word behind the id 256 + `number`: a ... z, aa ... zz, aaa ...

    Every beginning of a word is a word, so each is reached by merging one more letter.
    """
    letters = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return letters


def _write_configurations(folder: Path, shape: Shape, tokenizer: Tokenizer) -> None:
    ends = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    config: dict[str, object] = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": shape.tied,
        "use_sliding_window": False,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        **ends,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", ends)
    tokenizer_config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.context,
        "chat_template": TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", tokenizer_config)


def _write_weights(folder: Path, weights: Iterator[tuple[str, Tensor]]) -> None:
    """One file, or shards of at most SHARD_BYTES with their index, as publishers write them."""
    shards: list[dict[str, Tensor]] = [{}]
    held = total = 0
    for name, weight in weights:
        if held and held + weight.nbytes > SHARD_BYTES:
            shards.append({})
            held = 0
        shards[-1][name] = weight
        held += weight.nbytes
        total += weight.nbytes
    if len(shards) == 1:
        save_file(shards[0], str(folder / "model.safetensors"), metadata={"format": "pt"})
        return
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, str(folder / file), metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random checkpoint of a known shape.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="126m")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_checkpoint(options.folder, SHAPES[options.shape], options.seed)
    size = sum(file.stat().st_size for file in options.folder.iterdir())
    print(f"{options.folder}: {options.shape}, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
