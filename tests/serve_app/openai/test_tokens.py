"""Requests to tokenize and detokenize: what is read from them and what is refused."""

import json
from typing import Any

import pytest

from serve_app.openai.errors import ApiError
from serve_app.openai.tokens import (
    parse_detokenize_request,
    parse_tokenize_request,
    tokenize_body,
)
from serve_app.tenancy.key_defaults import KeyDefaults

MODEL = "deepseek-r1-32b"
HELLO = [{"role": "user", "content": "hello"}]


def tokenize(**fields: Any) -> Any:
    return parse_tokenize_request(json.dumps(fields).encode(), MODEL)


def test_a_text_asks_for_special_tokens_unless_it_says_otherwise() -> None:
    parsed = tokenize(prompt="hello", colour="blue")
    assert parsed.text.prompt == "hello"
    assert parsed.text.add_special_tokens
    assert parsed.chat is None
    assert not parsed.with_strings
    assert parsed.ignored == ("colour",)
    assert not tokenize(prompt="", add_special_tokens=False).text.add_special_tokens


def test_a_chat_is_read_by_the_parser_of_chats_and_may_leave_the_model_out() -> None:
    parsed = tokenize(messages=HELLO, return_token_strs=True, add_special_tokens=True, colour=1)
    assert parsed.text is None
    assert parsed.chat.request.model == MODEL
    assert parsed.with_strings
    assert parsed.ignored == ("colour",)


def test_a_chat_is_rendered_as_the_key_would_have_it() -> None:
    reserving = KeyDefaults(answer_reserve=True)
    parsed = tokenize(messages=HELLO, max_tokens=3)
    assert parsed.chat.request.thinking_tokens(2) is None
    assert parsed.with_defaults(reserving).chat.request.thinking_tokens(2) == 0
    text = tokenize(prompt="hello")
    assert text.with_defaults(reserving) == text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": ["hello"]}, "prompt"),
        ({"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ({"prompt": "a", "messages": HELLO}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "a"}]}, "messages[0].role"),
        ({"messages": HELLO, "return_token_strs": "yes"}, "return_token_strs"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        tokenize(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("tokens", [None, "1", [1.5], [True], [-1], ["1"], [2**31]])
def test_ids_are_whole_numbers_from_zero(tokens: Any) -> None:
    with pytest.raises(ApiError) as caught:
        parse_detokenize_request(json.dumps({"tokens": tokens}).encode())
    assert caught.value.status == 400
    assert (caught.value.param or "").startswith("tokens")


def test_an_id_beyond_the_vocabulary_is_named_by_its_place() -> None:
    request, ignored = parse_detokenize_request(b'{"tokens": [1, 99], "x": 1}')
    assert ignored == ("x",)
    request.check_vocabulary(100)
    with pytest.raises(ApiError) as caught:
        request.check_vocabulary(99)
    assert caught.value.param == "tokens[1]"


def test_the_reply_has_the_usual_shape() -> None:
    reply = json.loads(tokenize_body([1, 2], 512, ["a", "b"]))
    assert reply == {"count": 2, "max_model_len": 512, "tokens": [1, 2], "token_strs": ["a", "b"]}
