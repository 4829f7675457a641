import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.text.detokenizer import Detokenizer
from cluster.text.tokenizer import Tokenizer

TRICKY = [
    "🙂",
    "👩‍👩‍👧",
    "👍🏽",
    "日本語",
    "e\u0301",
    "नमस्ते",
    "\u200d",
    "\x00",
    "\ufeff",
    "ß",
    "\U0010ffff",
    "a",
]
texts = st.lists(st.one_of(st.sampled_from(TRICKY), st.text(max_size=4)), max_size=12).map("".join)


def chunked(ids: list[int], cuts: list[int]) -> list[list[int]]:
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    return [ids[start:end] for start, end in itertools.pairwise(edges)]


def byte_ids(tokenizer: Tokenizer) -> dict[int, int]:
    """byte -> the id of the token that is just this byte"""
    found = {tokenizer.token_bytes(token_id): token_id for token_id in range(tokenizer.size)}
    return {byte: found[bytes([byte])] for byte in range(256)}


@given(text=texts, cuts=st.lists(st.integers(0, 1000)))
@settings(deadline=None)
def test_any_chunking_gives_the_text_of_one_decode(
    tokenizer: Tokenizer, text: str, cuts: list[int]
) -> None:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(chunk) for chunk in chunked(tokenizer.encode_content(text), cuts)]
    assert "".join(pieces) == text
    assert detokenizer.flush() == ""


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_any_ids_in_any_chunking_equal_one_decode_with_replacement(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.size + 3), max_size=40))
    cuts = data.draw(st.lists(st.integers(0, 1000)))
    shown = [token_id for token_id in ids if token_id not in tokenizer.special_ids]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(chunk) for chunk in chunked(ids, cuts)]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(shown)


@given(data=st.binary(max_size=40))
@settings(deadline=None, max_examples=300)
def test_invalid_bytes_are_replaced_as_in_one_decode(tokenizer: Tokenizer, data: bytes) -> None:
    ids = byte_ids(tokenizer)
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.push([ids[byte]]) for byte in data) + detokenizer.flush()
    assert text == data.decode("utf-8", errors="replace")


def test_no_half_of_a_character_is_shown(tokenizer: Tokenizer) -> None:
    ids = byte_ids(tokenizer)
    detokenizer = Detokenizer(tokenizer)
    shown = [detokenizer.push([ids[byte]]) for byte in "é日🙂".encode()]
    assert shown == ["", "é", "", "", "日", "", "", "", "🙂"]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_flush_shows_one_replacement_for_an_incomplete_character(
    tokenizer: Tokenizer, length: int
) -> None:
    ids = byte_ids(tokenizer)
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push([ids[byte] for byte in "🙂".encode()[:length]]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""
    assert detokenizer.push([ids[byte] for byte in "🙂".encode()]) == "🙂"


def test_special_ids_are_hidden_wherever_they_come(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    hidden = sorted(tokenizer.special_ids)
    ids = [*hidden, *tokenizer.encode_content("a"), *hidden, *tokenizer.encode_content("b")]
    assert detokenizer.push(ids) == "ab"
