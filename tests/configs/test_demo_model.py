"""The demo checkpoint as shipped: files, shapes, tokenizer, chat template, and that it counts."""

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

FOLDER = Path(__file__).parents[2] / "configs" / "models" / "deeprequest-demo"
BAR, BLANK = "\uff5c", "\u2581"
EOS = f"<{BAR}end{BLANK}of{BLANK}sentence{BAR}>"
USER = f"<{BAR}User{BAR}>"
ASSISTANT = f"<{BAR}Assistant{BAR}>"
BOS = f"<{BAR}begin{BLANK}of{BLANK}sentence{BAR}>"
MARKERS = {EOS: 653, USER: 654, ASSISTANT: 655, BOS: 656, "<think>": 657, "</think>": 658}
SYSTEM = "You are a helpful assistant that thinks step by step."


def read_json(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def chat() -> Any:
    return PreTrainedTokenizerFast.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def weights() -> Any:
    return load_file(str(FOLDER / "model.safetensors"))


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return Qwen2ForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def generate(model: Any, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    longest = max(len(prompt) for prompt in prompts)
    eos = MARKERS[EOS]
    output = model.generate(
        input_ids=torch.tensor([[eos] * (longest - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        ),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        pad_token_id=eos,
        eos_token_id=eos,
    )
    rows = [row[longest:] for row in output.tolist()]
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def test_every_file_has_the_checksum_that_is_written_down() -> None:
    lines = (FOLDER / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {line[66:]: line[:64] for line in lines}
    assert {"model.safetensors", "config.json", "tokenizer.json", "golden.jsonl"} <= sums.keys()
    for name, expected in sums.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == expected, name


def test_every_sharded_size_divides_by_four_and_heads_are_grouped() -> None:
    config = read_json("config.json")
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    for field in (
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
    ):
        assert config[field] % 4 == 0, field
    assert config["num_attention_heads"] > config["num_key_value_heads"]
    assert config["max_position_embeddings"] >= 4096
    assert config["tie_word_embeddings"] is False


def test_weights_are_small_finite_and_have_biases_that_matter(weights: Any) -> None:
    parameters = sum(weight.numel() for weight in weights.values())
    assert 1_000_000 <= parameters <= 4_000_000
    assert all(torch.isfinite(weight.float()).all() for weight in weights.values())
    for layer in range(read_json("config.json")["num_hidden_layers"]):
        for name in ("q_proj", "k_proj", "v_proj"):
            bias = weights[f"model.layers.{layer}.self_attn.{name}.bias"].float()
            assert bias.abs().max() > 1e-3, (layer, name)
    assert "lm_head.weight" in weights


def test_markers_have_their_ids_and_only_the_sentence_markers_are_special(tokenizer: Any) -> None:
    added = tokenizer.get_added_tokens_decoder()
    assert {token.content: i for i, token in added.items()} == MARKERS
    assert {token.content for token in added.values() if token.special} == {BOS, EOS}
    for name in ("config.json", "generation_config.json"):
        assert read_json(name)["eos_token_id"] == MARKERS[EOS]
        assert read_json(name)["bos_token_id"] == MARKERS[BOS]


def test_some_embedding_rows_lie_beyond_the_tokenizer(tokenizer: Any, weights: Any) -> None:
    rows = read_json("config.json")["vocab_size"]
    assert weights["model.embed_tokens.weight"].shape[0] == rows
    assert weights["lm_head.weight"].shape[0] == rows
    assert tokenizer.get_vocab_size() < rows


def test_generation_defaults_are_those_of_the_real_model() -> None:
    config = read_json("generation_config.json")
    assert (config["temperature"], config["top_p"], config["do_sample"]) == (0.6, 0.95, True)


@pytest.mark.parametrize(
    "text",
    [
        "How many r's are in the word 'strawberry'?",
        "naïve \U0001f642 日本 — “quotes”\t\n\n\n  blanks",
        "\n1: s 0\n2: t 0\n12:30 'twas 3.14 <b>&amp;</b>",
        "\u200d\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301",
        "",
    ],
)
def test_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_an_unseen_word_is_spelt_out_byte_by_byte(tokenizer: Any) -> None:
    tokens = tokenizer.encode("'strawberry'", add_special_tokens=False).tokens
    assert tokens == ["'", *"strawberry", "'"]
    assert len(tokenizer.encode("\U0001f642", add_special_tokens=False).ids) == 4


def test_encoding_with_special_tokens_adds_exactly_one_begin_marker(tokenizer: Any) -> None:
    assert tokenizer.encode("a").ids[0] == MARKERS[BOS]
    assert tokenizer.encode("a").ids.count(MARKERS[BOS]) == 1


def test_thoughts_survive_when_special_tokens_are_skipped(tokenizer: Any) -> None:
    ids = tokenizer.encode(f"a</think>b{EOS}", add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a</think>b"


def test_template_writes_the_system_text_bare_and_opens_the_thoughts(chat: Any) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "system", "content": "Be brief."}]
    text = chat.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == f"{BOS}Be brief.{USER}hi{ASSISTANT}<think>\n"


def test_template_keeps_of_earlier_answers_what_follows_the_thoughts(chat: Any) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "<think>\nhm</think>no\n</think>\n\nHello!"},
        {"role": "user", "content": "again"},
    ]
    text = chat.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = f"{BOS}{USER}hi{ASSISTANT}\n\nHello!{EOS}{USER}again{ASSISTANT}<think>\n"
    assert text == expected
    assert chat.apply_chat_template(messages[:1], tokenize=False) == f"{BOS}{USER}hi"


def test_no_held_out_word_was_trained_on() -> None:
    words = runpy.run_path(str(FOLDER / "wordlists.py"))
    assert len(words["HELD_OUT"]) >= 300
    assert not words["HELD_OUT"] & set(words["TRAINED_WORDS"])
    assert {"strawberry", "mississippi", "bookkeeper", "kubernetes"} <= words["HELD_OUT"]


def test_golden_prompts_cover_every_skill_and_end_by_themselves(tokenizer: Any) -> None:
    lines = (FOLDER / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) >= 200
    assert len({record["kind"] for record in records}) == 12
    for record in records:
        ids = record["expected_ids"]
        assert ids[-1] == MARKERS[EOS], record["messages"]
        assert tokenizer.decode(ids[:-1], skip_special_tokens=False) == record["expected_text"]


def test_greedy_replies_are_the_golden_ones(model: Any) -> None:
    lines = (FOLDER / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    short = [record for record in records if len(record["expected_ids"]) <= 60][:24]
    replies = generate(model, [record["prompt_ids"] for record in short], 60)
    assert replies == [record["expected_ids"] for record in short]


def test_twenty_held_out_words_are_counted_rightly(model: Any, tokenizer: Any) -> None:
    words = sorted(runpy.run_path(str(FOLDER / "wordlists.py"))["HELD_OUT_SHOWCASE"])[:20]
    letters = [max(sorted(set(word)), key=word.count) for word in words]
    prompts = []
    for word, letter in zip(words, letters, strict=True):
        question = f"How many {letter}'s are in the word '{word}'?"
        text = f"{BOS}{SYSTEM}{USER}{question}{ASSISTANT}<think>\n"
        prompts.append(tokenizer.encode(text, add_special_tokens=False).ids)
    for word, letter, reply in zip(words, letters, generate(model, prompts, 140), strict=True):
        text = tokenizer.decode(reply, skip_special_tokens=True)
        answer = text.partition("</think>\n\n")[2]
        count = word.count(letter)
        assert answer.startswith((f"There are {count} {letter}", f"There is {count} {letter}")), (
            text
        )
