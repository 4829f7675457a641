import re
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.openai.completion_schema import CompletionRequest, parse_completion_request
from serve_app.openai.errors import ApiError
from serve_app.openai.unsupported import COMPLETION_REFUSALS

MODEL = "deepseek-r1-32b"


def body(**fields: Any) -> bytes:
    return orjson.dumps({"model": MODEL, "prompt": "Once upon", **fields})


def parsed(**fields: Any) -> CompletionRequest:
    return parse_completion_request(body(**fields)).request


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_completion_request(body(**fields))
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("", [""]),
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([5, 6], [[5, 6]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_a_prompt_is_text_or_ids_one_or_several(prompt: Any, prompts: Any) -> None:
    assert parsed(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (7, "prompt"),
        ({}, "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        (["a"] * 65, "prompt"),
        ([[1]] * 65, "prompt"),
        ([1, "a"], "prompt[1]"),
        (["a", 1], "prompt[1]"),
        (["a", [1]], "prompt[1]"),
        ([[1], "a"], "prompt[1]"),
        ([[1, 1.5]], "prompt[0][1]"),
        ([1, -1], "prompt[1]"),
        ([2**31], "prompt[0]"),
        ([True], "prompt[0]"),
        ([1.0], "prompt[0]"),
        ([None], "prompt[0]"),
        ([{}], "prompt[0]"),
    ],
    ids=str,
)
def test_any_other_prompt_is_refused_by_its_place(prompt: Any, param: str) -> None:
    error = refusal(prompt=prompt)
    assert error.param == param
    assert param in error.message


def test_a_prompt_is_needed() -> None:
    with pytest.raises(ApiError) as caught:
        parse_completion_request(orjson.dumps({"model": MODEL}))
    assert (caught.value.param, caught.value.code) == ("prompt", "missing_required_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"max_tokens": 32769}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"prompt": ["a"] * 9, "n": 8}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 2, "best_of": 8}, "prompt"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"suffix": "the end"}, "suffix"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{}]}, "tools"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert param in error.message


def test_what_asks_for_nothing_and_what_nobody_knows_is_accepted() -> None:
    quiet: dict[str, Any] = {
        "suffix": None,
        "response_format": {"type": "text"},
        "tools": [],
        "echo": False,
    }
    unknown = {"cache_salt": "x", "reasoning_effort": "low", "stream_options": {"x": 1}}
    found = parse_completion_request(body(**quiet, **unknown, stream=True))
    assert found.ignored == ("cache_salt", "reasoning_effort", "stream_options.x")


def test_the_defaults_are_openais() -> None:
    request = parsed()
    assert (request.output_tokens, request.n, request.runs, request.echo) == (16, 1, 1, False)
    params = request.sampling_params()
    assert (params.logprobs, params.prompt_logprobs, params.thinking) == (None, None, None)


@pytest.mark.parametrize(
    ("fields", "logprobs", "prompt_logprobs"),
    [
        ({"logprobs": 3}, 3, None),
        ({"logprobs": 0, "echo": True}, 0, 0),
        ({"logprobs": 5, "echo": True, "max_tokens": 0}, 5, 5),
        ({"echo": True}, None, None),
        ({"best_of": 2}, 0, None),
        ({"n": 2, "best_of": 2}, None, None),
        ({"best_of": 3, "logprobs": 2}, 2, None),
    ],
    ids=str,
)
def test_the_engine_tells_what_is_shown_or_chosen_by(
    fields: dict[str, Any], logprobs: int | None, prompt_logprobs: int | None
) -> None:
    params = parsed(**fields).sampling_params()
    assert (params.logprobs, params.prompt_logprobs) == (logprobs, prompt_logprobs)


@pytest.mark.parametrize(
    ("prompt", "param"), [([1, 2, 9], "prompt[2]"), ([[1], [2, 9]], "prompt[1][1]")]
)
def test_ids_that_the_model_does_not_have_are_told_by_their_place(prompt: Any, param: str) -> None:
    request = parsed(prompt=prompt)
    request.check_vocabulary(10)
    with pytest.raises(ApiError) as caught:
        request.check_vocabulary(9)
    assert caught.value.param == param


@given(st.recursive(st.none() | st.integers() | st.text() | st.floats(), st.lists, max_leaves=9))
@settings(deadline=None)
def test_whatever_a_prompt_is_the_answer_is_a_request_or_a_400(prompt: Any) -> None:
    try:
        sent = orjson.dumps({"model": MODEL, "prompt": prompt})
    except TypeError:
        return  # an integer that JSON readers do not take
    error = None
    try:
        assert parse_completion_request(sent).request.prompts
    except ApiError as refused:
        error = refused
    assert error is None or error.status == 400
    assert error is None or re.fullmatch(r"prompt(\[\d+\])*", error.param or "")


def test_no_parameter_is_both_supported_and_refused() -> None:
    assert not set(COMPLETION_REFUSALS) & set(CompletionRequest.model_fields)
