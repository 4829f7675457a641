from typing import Any

import pytest

from serve_app.openai.errors import ApiError
from serve_app.openai.unsupported import UNSUPPORTED_PARAMETERS, take_unsupported


@pytest.mark.parametrize(
    "field",
    [
        {"tools": []},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "auto"},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema"}},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"top_logprobs": -1},
        {"logit_bias": {"5": 1}},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -2},
        {"repetition_penalty": 1.1},
        {"n": 2},
        {"n": 10**18},
        {"modalities": ["text", "audio"]},
        {"modalities": 7},
        {"reasoning_effort": "none"},
        {"thinking": {"type": "disabled"}},
        {"thinking_budget": 0},
        {"chat_template": "{{ 7 * 7 }}"},
        {"chat_template_kwargs": {"thinking": False}},
        {"continue_final_message": True},
        {"guided_regex": "a+"},
    ],
    ids=str,
)
def test_what_would_change_the_answer_is_refused_by_name(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(ApiError) as caught:
        take_unsupported(dict(field))
    assert (caught.value.status, caught.value.code) == (400, "unsupported_parameter")
    assert caught.value.param == name
    assert name in caught.value.message


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "text"}},
        {"logprobs": False},
        {"logit_bias": {}},
        {"presence_penalty": 0},
        {"frequency_penalty": 0.0},
        {"repetition_penalty": 1.0},
        {"n": 1},
        {"modalities": ["text"]},
        {"thinking": {"type": "enabled"}},
        {"thinking_token_budget": -1},
        {"chat_template_kwargs": {"thinking": True}},
        {"add_generation_prompt": True},
    ],
    ids=str,
)
def test_what_asks_for_nothing_is_accepted_and_taken_away(field: dict[str, Any]) -> None:
    fields = {**field, "model": "m"}
    take_unsupported(fields)
    assert fields == {"model": "m"}


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ({"n": True}, "invalid_type"),
        ({"n": "1"}, "invalid_type"),
        ({"n": 1.0}, "invalid_type"),
        ({"n": -1}, "invalid_value"),
        ({"logprobs": 1}, "invalid_type"),
        ({"logit_bias": []}, "invalid_type"),
        ({"presence_penalty": 2.1}, "invalid_value"),
        ({"frequency_penalty": -2.1}, "invalid_value"),
        ({"frequency_penalty": False}, "invalid_type"),
        ({"response_format": "text"}, "invalid_type"),
    ],
    ids=str,
)
def test_wrong_types_and_bounds_are_told_apart(field: dict[str, Any], code: str) -> None:
    (name,) = field
    with pytest.raises(ApiError) as caught:
        take_unsupported(dict(field))
    assert (caught.value.code, caught.value.param) == (code, name)


def test_no_parameter_is_both_supported_and_refused() -> None:
    from serve_app.openai.schema import ChatCompletionRequest

    assert not set(UNSUPPORTED_PARAMETERS) & set(ChatCompletionRequest.model_fields)
