from typing import Any

import pytest

from serve_app.openai.errors import ApiError
from serve_app.openai.unsupported import CHAT_REFUSALS, take_unsupported


@pytest.mark.parametrize(
    "field",
    [
        {"functions": [{"name": "f"}]},
        {"modalities": ["text", "audio"]},
        {"modalities": 7},
        {"chat_template": "{{ 7 * 7 }}"},
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
        {"modalities": ["text"]},
    ],
    ids=str,
)
def test_what_asks_for_nothing_is_accepted_and_taken_away(field: dict[str, Any]) -> None:
    fields = {**field, "model": "m"}
    take_unsupported(fields)
    assert fields == {"model": "m"}


@pytest.mark.parametrize("field", [{"echo": 1}, {"return_prompt_text": "no"}], ids=str)
def test_a_wrong_type_is_told_as_such(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(ApiError) as caught:
        take_unsupported(dict(field))
    assert (caught.value.code, caught.value.param) == ("invalid_type", name)


def test_no_parameter_is_both_supported_and_refused() -> None:
    from serve_app.openai.schema import ChatCompletionRequest

    assert not set(CHAT_REFUSALS) & set(ChatCompletionRequest.model_fields)
