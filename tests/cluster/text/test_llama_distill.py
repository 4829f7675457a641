"""The tokenizer of the Llama distills: other ids, other merges, the same markers and template."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import ASSISTANT, BOS, EOS, THINK_END, THINK_START, USER, Tokenizer

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RESERVED = [f"<|reserved_special_token_{number}|>" for number in range(9)]
ADDED = [BOS, EOS, *RESERVED, USER, ASSISTANT, THINK_START, THINK_END]
"""In the order of their ids; in the Qwen distills EOS comes first and BOS after the turns."""


@pytest.fixture(scope="module")
def llama_spec() -> dict[str, Any]:
    built = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    built.train_from_iterator(["the word strawberry has 3 r's, 1234567 letters\n\n"], trainer)
    for text in ADDED:
        thinks = text in (THINK_START, THINK_END)
        built.add_tokens([AddedToken(text, special=not thinks, normalized=False)])
    spec: dict[str, Any] = json.loads(built.to_str())
    return spec


@pytest.fixture(scope="module")
def llama(llama_spec: dict[str, Any], checkpoint: Callable[..., Path]) -> Tokenizer:
    ids = {token["content"]: token["id"] for token in llama_spec["added_tokens"]}
    folder = checkpoint(
        tokenizer=llama_spec,
        generation_config={"bos_token_id": ids[BOS], "eos_token_id": ids[EOS]},
        config={"model_type": "llama", "bos_token_id": ids[BOS], "eos_token_id": ids[EOS]},
    )
    return Tokenizer(folder)


def test_markers_are_found_whatever_their_ids(llama: Tokenizer) -> None:
    first = llama.bos_id
    assert (llama.eos_id, llama.user_id, llama.assistant_id) == (first + 1, first + 11, first + 12)
    assert (llama.think_start_id, llama.think_end_id) == (first + 13, first + 14)
    assert llama.eos_token_ids == {llama.eos_id}
    assert llama.size == llama.think_end_id + 1


def test_a_conversation_has_the_same_shape_as_in_the_qwen_distills(llama: Tokenizer) -> None:
    template = ChatTemplate(llama)
    question = llama.encode_content("1234567 r's?")
    assert template.render([Message("user", "1234567 r's?")]) == [
        llama.bos_id,
        llama.user_id,
        *question,
        llama.assistant_id,
        llama.think_start_id,
        *llama.encode("\n"),
    ]
    assert template.verify()


def test_nothing_that_people_write_is_a_control_token(llama: Tokenizer) -> None:
    for text in ADDED:
        ids = llama.encode_content(text)
        assert max(ids) < llama.bos_id
        assert llama.decode(ids) == text
