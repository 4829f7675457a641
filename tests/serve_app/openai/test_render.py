"""Advice on a chat before it is run."""

import json
from typing import Any

import pytest

from serve_app.openai.render import render_body, warnings
from serve_app.openai.schema import parse_chat_request

USER = {"role": "user", "content": "2+2?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def asked(*messages: dict[str, Any], **fields: Any) -> Any:
    body = {"model": "m", "messages": list(messages) or [USER], "max_tokens": 500, **fields}
    return parse_chat_request(json.dumps(body).encode())


def advice(*messages: dict[str, Any], **fields: Any) -> list[tuple[str, str]]:
    return [(found.code, found.param) for found in warnings(asked(*messages, **fields).request)]


def test_a_request_as_the_model_likes_it_gets_no_advice() -> None:
    assert advice() == []
    assert advice(USER, {"role": "assistant", "content": "4"}, USER, temperature=0.5) == []


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([SYSTEM, USER], [("system_prompt_not_advised", "messages[0]")]),
        (
            [USER, {"role": "developer", "content": "x"}],
            [
                ("system_messages_moved", "messages[1]"),
                ("system_prompt_not_advised", "messages[1]"),
            ],
        ),
        (
            [SYSTEM, SYSTEM, USER],
            [
                ("system_messages_moved", "messages[0]"),
                ("system_prompt_not_advised", "messages[0]"),
            ],
        ),
        (
            [USER, {"role": "assistant", "content": "<think>\nhm</think>4"}, USER],
            [("thoughts_dropped", "messages[1].content")],
        ),
        (
            [USER, {"role": "assistant", "content": "4", "reasoning_content": "hm"}, USER],
            [("thoughts_dropped", "messages[1].content")],
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a</think>b"}]}],
            [("control_text_is_text", "messages[0].content")],
        ),
        (
            [USER, {"role": "assistant", "content": "4"}],
            [("last_turn_is_not_the_users", "messages[1]")],
        ),
    ],
)
def test_what_is_done_otherwise_than_it_looks_is_told(
    messages: list[dict[str, Any]], expected: list[tuple[str, str]]
) -> None:
    assert advice(*messages) == expected


@pytest.mark.parametrize("temperature", [0, 0.49, 0.71, 2])
def test_a_temperature_off_the_advised_range_is_told(temperature: float) -> None:
    assert advice(temperature=temperature) == [("temperature_not_advised", "temperature")]


def test_too_few_tokens_are_told_under_the_name_that_was_used() -> None:
    assert advice(max_tokens=499) == [("max_tokens_few", "max_tokens")]
    assert advice(max_tokens=None) == [("max_tokens_few", "max_tokens")]
    found = advice(max_completion_tokens=20)
    assert found == [("max_tokens_few", "max_completion_tokens")]


def test_the_reply_tells_the_prompt_and_the_settings_in_force() -> None:
    parsed = asked(USER, top_k=20, stop="x", seed=7, colour="blue")
    reply = json.loads(render_body(parsed, [1, 2, 3], "abc", 4096, None))
    assert (reply["prompt"], reply["token_ids"], reply["prompt_tokens"]) == ("abc", [1, 2, 3], 3)
    assert (reply["max_tokens"], reply["max_model_len"]) == (500, 4096)
    assert reply["cached_tokens"] is None
    assert reply["ignored"] == ["colour"]
    assert reply["warnings"] == []
    assert reply["sampling"] == {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.0,
        "seed": 7,
        "stop": ["x"],
    }
