"""The `prediction` parameter of a chat request."""

from typing import Any

import orjson
import pytest

from serve_app.openai.errors import ApiError
from serve_app.openai.schema import ParsedRequest, parse_chat_request


def parse(prediction: Any) -> ParsedRequest:
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "deepseek-r1-32b", "messages": messages, "prediction": prediction}
    return parse_chat_request(orjson.dumps(body))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("x = 1\n", "x = 1\n"),
        ([{"type": "text", "text": "x ="}, {"type": "text", "text": " 1"}], "x = 1"),
        ("", ""),
    ],
)
def test_a_prediction_is_a_string_or_text_parts(content: Any, text: str) -> None:
    request, ignored = parse({"type": "content", "content": content})
    assert request.prediction is not None
    assert request.prediction.text() == text
    assert ignored == ()


def test_no_prediction_is_none() -> None:
    assert parse(None).request.prediction is None


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ("x = 1", "prediction"),
        ({"content": "x"}, "prediction.type"),
        ({"type": "regex", "content": "x"}, "prediction.type"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "content", "content": 5}, "prediction.content"),
        ({"type": "content", "content": [{"type": "image_url"}]}, "prediction.content[0].type"),
    ],
)
def test_a_wrong_prediction_is_refused_by_name(prediction: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(prediction)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_what_is_unknown_in_a_prediction_is_named() -> None:
    parts = [{"type": "text", "text": "x", "cache": 1}]
    _, ignored = parse({"type": "content", "content": parts, "weight": 2})
    assert ignored == ("prediction.weight", "prediction.content.cache")
