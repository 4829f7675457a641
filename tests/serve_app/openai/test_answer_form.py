from typing import Any

import orjson
import pytest

from serve_app.openai.errors import ApiError
from serve_app.openai.schema import ChatCompletionRequest, parse_chat_request

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def body(**fields: Any) -> bytes:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]
    return orjson.dumps({"model": "m", "messages": messages, **fields})


def parse(**fields: Any) -> ChatCompletionRequest:
    return parse_chat_request(body(**fields)).request


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value


def test_a_form_is_a_schema_and_the_field_that_asked_for_it() -> None:
    assert parse().form is None
    assert parse(response_format=None).form is None
    assert parse(response_format={"type": "text"}).form is None
    form = parse(response_format={"type": "json_object"}).form
    assert form == ({"type": "object"}, "response_format")
    form = parse(response_format=JSON_SCHEMA).form
    assert form == (SCHEMA, "response_format.json_schema.schema")


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({}, "split"),
        ({"reasoning_format": "think_tags"}, "split"),
        ({"reasoning_format": "split"}, "split"),
        ({"reasoning_format": "hidden"}, "hidden"),
        ({"include_reasoning": False}, "hidden"),
        ({"reasoning": {"exclude": True}}, "hidden"),
    ],
    ids=str,
)
def test_an_answer_with_a_form_is_told_apart_from_the_thoughts(
    asked: dict[str, Any], shown: str
) -> None:
    assert parse(response_format=JSON_SCHEMA, **asked).shown_reasoning() == shown
    assert parse(response_format={"type": "text"}).shown_reasoning() == "think_tags"


@pytest.mark.parametrize(
    ("response_format", "param", "code"),
    [
        ("json_object", "response_format", "invalid_type"),
        ([], "response_format", "invalid_type"),
        ({}, "response_format.type", "missing_required_parameter"),
        ({"type": "xml"}, "response_format.type", "invalid_value"),
        ({"type": "json_schema"}, "response_format.json_schema", "missing_required_parameter"),
        (
            {"type": "json_schema", "json_schema": {"name": "x"}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
            "response_format.json_schema.name",
            "missing_required_parameter",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a b", "schema": SCHEMA}},
            "response_format.json_schema.name",
            "invalid_value",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": [SCHEMA]}},
            "response_format.json_schema.schema",
            "invalid_type",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}},
            "response_format.json_schema.schema",
            "invalid_value",
        ),
    ],
)
def test_a_form_that_is_not_one_is_refused_by_the_field_at_fault(
    response_format: object, param: str, code: str
) -> None:
    error = refused(response_format=response_format)
    assert (error.param, error.code) == (param, code)


@pytest.mark.parametrize(
    "other",
    [{"ignore_eos": True}, {"min_tokens": 3}, {"continue_final_message": True}],
    ids=str,
)
def test_an_answer_with_a_form_ends_when_it_is_complete(other: dict[str, Any]) -> None:
    error = refused(response_format=JSON_SCHEMA, **other)
    assert [error.param] == list(other)
    assert "response_format" in error.message
    parse(response_format={"type": "text"}, **other)


def test_unknown_parts_of_a_form_are_named_as_ignored() -> None:
    asked = {**JSON_SCHEMA, "more": 1}
    asked["json_schema"] = {**JSON_SCHEMA["json_schema"], "other": 2}  # type: ignore[dict-item]
    ignored = parse_chat_request(body(response_format=asked)).ignored
    assert set(ignored) == {"response_format.more", "response_format.json_schema.other"}
