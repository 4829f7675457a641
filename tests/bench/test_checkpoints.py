"""A random checkpoint is one that engines load and services serve."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.text.template import ChatTemplate
from cluster.text.tokenizer import Tokenizer
from tests.bench.checkpoints import SHAPES, make_checkpoint, word


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, SHAPES["tiny"])
    return folder


def test_transformers_finds_every_tensor(checkpoint: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(loaded[1].values())


def test_every_word_is_one_token_for_us_and_for_transformers(checkpoint: Path) -> None:
    ours, theirs = Tokenizer(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    words = "".join(f" {word(number)}" for number in range(700))
    ids = list(range(256, 956))
    assert ours.encode_content(words) == ids
    assert theirs(words, add_special_tokens=False)["input_ids"] == ids


def test_its_chat_template_is_the_one_that_is_served(checkpoint: Path) -> None:
    assert ChatTemplate(Tokenizer(checkpoint)).verify()


def test_the_same_seed_makes_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, SHAPES["tiny"])
    for file in checkpoint.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()
