import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.text.tokenizer import (
    ASSISTANT,
    BOS,
    EOS,
    THINK_END,
    THINK_START,
    USER,
    Tokenizer,
    TokenizerError,
)

DEMO = Path(__file__).parents[3] / "configs" / "models" / "deeprequest-demo"
MARKERS = (BOS, EOS, USER, ASSISTANT, THINK_START, THINK_END, "<|EOT|>")
Checkpoint = Callable[..., Path]

fragments = st.lists(
    st.one_of(st.sampled_from([*MARKERS, "<think", ">", "</", "<", "\n", " "]), st.text()),
    max_size=6,
).map("".join)


def added_ids(tokenizer: Tokenizer) -> set[int]:
    spec = json.loads((tokenizer.model_dir / "tokenizer.json").read_text())
    return {token["id"] for token in spec["added_tokens"]}


def test_markers_are_deepseeks_own_strings() -> None:
    for marker in (BOS, EOS, USER, ASSISTANT):
        assert marker[1] == marker[-2] == "\N{FULLWIDTH VERTICAL LINE}"
        assert "|" not in marker
        assert "_" not in marker
    assert BOS[2:-2].split("\N{LOWER ONE EIGHTH BLOCK}") == ["begin", "of", "sentence"]
    assert EOS[2:-2].split("\N{LOWER ONE EIGHTH BLOCK}") == ["end", "of", "sentence"]


def test_marker_ids_are_found_by_their_strings(tokenizer: Tokenizer) -> None:
    ids = [
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.user_id,
        tokenizer.assistant_id,
        tokenizer.think_start_id,
        tokenizer.think_end_id,
    ]
    texts = [tokenizer.token_bytes(token_id).decode() for token_id in ids]
    assert texts == [BOS, EOS, USER, ASSISTANT, THINK_START, THINK_END]


def test_bos_is_not_what_config_json_says(tokenizer: Tokenizer) -> None:
    config = json.loads((tokenizer.model_dir / "config.json").read_text())
    assert config["bos_token_id"] == tokenizer.eos_id != tokenizer.bos_id


def test_size_counts_real_tokens_up_to_the_highest_id(tokenizer: Tokenizer) -> None:
    assert tokenizer.size == max(added_ids(tokenizer)) + 1
    assert tokenizer.token_bytes(tokenizer.size) == b""
    assert tokenizer.token_bytes(-1) == b""
    assert tokenizer.shown_bytes([tokenizer.size, -1, 10**9]) == b""


def test_special_ids_hide_markers_but_not_the_think_tags(tokenizer: Tokenizer) -> None:
    markers = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.user_id, tokenizer.assistant_id}
    assert tokenizer.special_ids == markers
    assert tokenizer.shown_bytes(sorted(markers)) == b""
    tags = tokenizer.shown_bytes([tokenizer.think_start_id, tokenizer.think_end_id])
    assert tags == b"<think></think>"


@given(text=st.text())
@settings(deadline=None)
def test_bytes_of_the_ids_are_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    for ids in (tokenizer.encode(text), tokenizer.encode_content(text)):
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
        assert tokenizer.decode(ids) == text


@given(text=fragments)
@settings(deadline=None, max_examples=300)
def test_content_never_yields_an_added_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_content(text)
    assert added_ids(tokenizer).isdisjoint(ids)
    assert tokenizer.decode(ids) == text


def test_text_without_markers_has_the_same_ids_in_both_encoders(tokenizer: Tokenizer) -> None:
    text = "How many r's?\n\n 日本語 🙂 12345  "
    plain = tokenizers.Tokenizer.from_file(str(tokenizer.model_dir / "tokenizer.json"))
    expected = plain.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == tokenizer.encode_content(text) == expected


def test_encode_recognises_added_tokens_and_adds_no_bos(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(f"{BOS}{USER}") == [tokenizer.bos_id, tokenizer.user_id]
    assert tokenizer.encode("") == []


def test_many_texts_at_once_have_the_ids_of_each_alone(tokenizer: Tokenizer) -> None:
    texts = ["one", "", f"two {EOS}", "日本" * 50]
    assert tokenizer.encode_contents(texts) == [tokenizer.encode_content(text) for text in texts]
    assert tokenizer.encode_contents([]) == []


def test_lone_surrogate_is_a_value_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode_content("a\ud800b")
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode("a\udfffb")


def test_threads_share_one_tokenizer(tokenizer: Tokenizer) -> None:
    texts = [f"thread {number} 日本 <think> " * 40 for number in range(8)]
    expected = [tokenizer.encode_content(text) for text in texts]
    seen: list[list[list[int]]] = [[] for _ in texts]

    def work(number: int) -> None:
        for _ in range(20):
            seen[number].append(tokenizer.encode_content(texts[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ids == expected[number] for number, runs in enumerate(seen) for ids in runs)


def test_truncation_and_padding_in_the_file_are_not_obeyed(
    spec: dict[str, Any], checkpoint: Checkpoint
) -> None:
    bent = copy.deepcopy(spec)
    bent["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    assert len(Tokenizer(checkpoint(tokenizer=bent)).encode_content("a b c d e f g h")) > 3


def test_added_tokens_repeated_in_the_models_vocabulary_stay_out_of_reach(
    spec: dict[str, Any], checkpoint: Checkpoint
) -> None:
    bent = copy.deepcopy(spec)
    model = bent["model"]
    closing = next(t["id"] for t in bent["added_tokens"] if t["content"] == THINK_END)
    model["ignore_merges"] = True
    model["vocab"][THINK_END] = closing
    bent["pre_tokenizer"]["pretokenizers"][0] = {
        "type": "Split",
        "pattern": {"Regex": "</think>"},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer = Tokenizer(checkpoint(tokenizer=bent))
    assert tokenizer.encode(THINK_END) == [closing]
    assert closing not in tokenizer.encode_content(f"a{THINK_END}b")
    assert tokenizer.decode(tokenizer.encode_content(THINK_END)) == THINK_END


def test_merges_that_lead_to_an_added_token_are_dropped(
    spec: dict[str, Any], checkpoint: Checkpoint
) -> None:
    bent = copy.deepcopy(spec)
    model = bent["model"]
    extra = max(token["id"] for token in bent["added_tokens"]) + 1
    model["vocab"]["QX"] = extra
    model["vocab"]["QXQX"] = extra + 1
    model["merges"] += [["Q", "X"], ["QX", "QX"]]
    bent["added_tokens"].append({**bent["added_tokens"][-1], "id": extra, "content": "QX"})
    tokenizer = Tokenizer(checkpoint(tokenizer=bent))
    ids = tokenizer.encode_content("QXQX")
    assert tokenizer.decode(ids) == "QXQX"
    assert extra not in ids


def test_eos_ids_come_from_the_generation_config_first(checkpoint: Checkpoint) -> None:
    two = Tokenizer(checkpoint(generation_config={"eos_token_id": [5, 6]}))
    assert two.eos_token_ids == {5, 6, two.eos_id}
    assert {5, 6} <= two.special_ids
    silent = Tokenizer(checkpoint(generation_config={}, config={"eos_token_id": 7}))
    assert silent.eos_token_ids == {7, silent.eos_id}
    bare = Tokenizer(checkpoint(generation_config=None, config=None))
    assert bare.eos_token_ids == {bare.eos_id}


def test_eos_id_beyond_the_vocabulary_names_the_file(checkpoint: Checkpoint) -> None:
    with pytest.raises(TokenizerError, match=r"generation_config\.json: eos_token_id 151643"):
        Tokenizer(checkpoint(generation_config={"eos_token_id": 151643}))


@pytest.mark.parametrize("marker", [BOS, EOS, USER, ASSISTANT, THINK_START, THINK_END])
def test_missing_marker_names_file_and_remedy(
    spec: dict[str, Any], checkpoint: Checkpoint, marker: str
) -> None:
    bent = copy.deepcopy(spec)
    bent["added_tokens"] = [t for t in bent["added_tokens"] if t["content"] != marker]
    bent["post_processor"] = None
    with pytest.raises(TokenizerError, match=r"tokenizer\.json has no added token .*unchanged"):
        Tokenizer(checkpoint(tokenizer=bent))


def test_ascii_look_alike_of_a_marker_is_pointed_out(
    spec: dict[str, Any], checkpoint: Checkpoint
) -> None:
    bent = copy.deepcopy(spec)
    for token in bent["added_tokens"]:
        if token["content"] == USER:
            token["content"] = "<|User|>"
    with pytest.raises(TokenizerError, match=r"look-alike '<\|User\|>'"):
        Tokenizer(checkpoint(tokenizer=bent))


def test_missing_or_broken_files_are_named(checkpoint: Checkpoint, spec: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is missing"):
        Tokenizer(checkpoint(tokenizer=None))
    folder = checkpoint()
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"generation_config\.json cannot be read"):
        Tokenizer(folder)
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(TokenizerError, match="not a JSON object"):
        Tokenizer(folder)
    with pytest.raises(TokenizerError, match="byte-level BPE model"):
        Tokenizer(checkpoint(tokenizer={"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}))
    with pytest.raises(TokenizerError, match="added_tokens is malformed"):
        Tokenizer(checkpoint(tokenizer={**spec, "added_tokens": [{"content": "x"}]}))
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        Tokenizer(checkpoint(tokenizer={**spec, "pre_tokenizer": {"type": "Nope"}}))


def test_vocabulary_that_is_not_byte_level_is_refused(
    spec: dict[str, Any], checkpoint: Checkpoint
) -> None:
    bent = copy.deepcopy(spec)
    bent["model"]["vocab"]["\N{LOWER ONE EIGHTH BLOCK}the"] = 9999
    with pytest.raises(TokenizerError, match=r"token 9999 .* is not byte-level BPE"):
        Tokenizer(checkpoint(tokenizer=bent))


def test_demo_checkpoint_loads() -> None:
    tokenizer = Tokenizer(DEMO)
    config = json.loads((DEMO / "config.json").read_text())
    assert tokenizer.size <= config["vocab_size"]
    assert tokenizer.eos_token_ids == {tokenizer.eos_id}
    assert tokenizer.decode(tokenizer.encode_content("naïve 🙂 日本")) == "naïve 🙂 日本"


def test_whole_texts_are_of_all_shown_ids_that_split_no_character(tokenizer: Tokenizer) -> None:
    shown = {token_id: tokenizer.shown_bytes([token_id]) for token_id in range(tokenizer.size)}
    texts = {number: data.decode(errors="replace") for number, data in shown.items() if data}
    whole = {number: text for number, text in texts.items() if text.encode() == shown[number]}
    assert tokenizer.whole_texts == whole
    assert not tokenizer.special_ids & whole.keys()
