"""Checklist C: what is wrong with a request is told by name, and reaches no engine."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest

from tests.e2e.conformance.thoughts import TOKENIZER
from tests.e2e.conformance.wire import CHAT, MODEL, asked, bearer, error_of, post, settled
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e
PROMPT_TOKENS = "deeprequest_engine_prompt_tokens_total"
VOCABULARY = TOKENIZER.size
CONTEXT = 4096


def refused(service: Service, status: int = 400, **fields: Any) -> dict[str, Any]:
    """The error of a request that has `fields`; null ones are left out."""
    body = {name: value for name, value in asked(**fields).items() if value is not None}
    return error_of(post(service, body), status)


def message(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "hi", **fields}]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b"{}{}"])
def test_c18_a_body_that_is_no_json_object_is_invalid_json(service: Service, body: bytes) -> None:
    error_of(post(service, body), 400, "invalid_json")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/x"])
def test_c19_a_body_of_another_type_is_refused(service: Service, kind: str) -> None:
    error_of(post(service, asked(), headers={"content-type": kind}), 415)


def test_c20_a_body_over_the_limit_is_refused(service: Service) -> None:
    error_of(post(service, b" " * (5 * 2**20)), 413)


def test_c21_the_model_is_named_and_known(service: Service) -> None:
    assert refused(service, model=None)["param"] == "model"
    assert refused(service, model=7)["param"] == "model"
    assert refused(service, 404, model="gpt-4")["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        (message(role="nobody"), "messages[0].role"),
        (message(content=7), "messages[0].content"),
        (message(content=None), "messages[0].content"),
    ],
)
def test_c22_messages_are_a_list_of_turns(service: Service, messages: Any, param: str) -> None:
    assert refused(service, messages=messages)["param"] == param


def test_c23_param_names_the_field_and_nothing_of_its_value(service: Service) -> None:
    secret = "xylophone" * 5
    error = refused(service, messages=[*message(), {"role": "user", "content": {secret: secret}}])
    assert error["param"] == "messages[1].content"
    error = refused(service, metadata={secret: 7})
    assert error["param"] == "metadata"
    for found in (error, refused(service, stop=[secret * 10]), refused(service, seed=secret)):
        assert secret not in json.dumps(found)
        assert "/" not in (found["param"] or "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in (-0.1, 2.1, "a", True)),
        *(("top_p", value) for value in (0, 1.1, "1")),
        ("top_k", -2),
        *(("min_p", value) for value in (1.5, -0.1)),
        *(("presence_penalty", value) for value in (2.1, -2.1)),
        *(("frequency_penalty", value) for value in (2.1, -2.1)),
        *(("max_tokens", value) for value in (0, -1, 32769, 1.5, "10")),
        *(("max_completion_tokens", value) for value in (0, 32769)),
        *(("seed", value) for value in (2**63, 1.5)),
        *(("stop", value) for value in (["x"] * 17, "x" * 257, "", [""], 7)),
        *(("logit_bias", value) for value in ({"x": 1}, {str(VOCABULARY): 1}, {"1": 101})),
        ("logit_bias", {str(token): 1 for token in range(1025)}),
        ("stream", "yes"),
        ("response_format", {"type": "nonsense"}),
        ("tools", []),
        ("user", 7),
    ],
)
def test_c24_to_c30_values_out_of_bounds_are_refused_by_name(
    service: Service, field: str, value: Any
) -> None:
    param = refused(service, **{field: value})["param"]
    assert param is not None
    assert param.startswith(field)


def test_c24_nan_is_no_number(service: Service) -> None:
    body = json.dumps(asked(temperature=float("nan"))).encode()
    error_of(post(service, body), 400)


@pytest.mark.parametrize("n", [0, -1, 9, 1.5, "2", True])
def test_c25_n_is_a_whole_number_up_to_the_servers_most(service: Service, n: Any) -> None:
    assert refused(service, n=n)["param"] == "n"


def test_c25_as_many_choices_as_the_server_allows_are_given(service: Service) -> None:
    assert len(post(service, asked(n=8, max_tokens=1)).json()["choices"]) == 8


def test_c26_without_max_tokens_there_are_100_at_most(service: Service) -> None:
    body = {"model": MODEL, "messages": message(), "ignore_eos": True}
    assert post(service, body).json()["usage"]["completion_tokens"] == 100


def test_c27_the_newer_name_is_honoured_and_wins(service: Service) -> None:
    for fields in ({"max_tokens": None}, {"max_tokens": 50}):
        body = asked(max_completion_tokens=5, ignore_eos=True, **fields)
        reply = post(service, {name: value for name, value in body.items() if value is not None})
        assert reply.json()["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 21},
        {"logprobs": True, "top_logprobs": -1},
        {"logprobs": False, "top_logprobs": 2},
    ],
)
def test_c28_top_logprobs_need_logprobs_and_are_at_most_20(
    service: Service, fields: dict[str, Any]
) -> None:
    assert refused(service, **fields)["param"] == "top_logprobs"


def test_c31_stream_options_need_a_stream(service: Service) -> None:
    error = refused(service, stream_options={"include_usage": True})
    assert error["param"] == "stream_options"


@pytest.mark.parametrize("stream", [False, True])
def test_c32_a_prompt_too_long_is_told_with_both_numbers(service: Service, stream: bool) -> None:
    prompt = "a b c d " * 450
    tokens = post(service, asked(prompt), path="/tokenize").json()["count"]
    error = error_of(
        post(service, asked(prompt, max_tokens=CONTEXT - 10, stream=stream)),
        400,
        "context_length_exceeded",
    )
    assert str(CONTEXT) in error["message"]
    assert str(tokens) in error["message"]
    assert error["code"] in error["message"], "langchain-openai looks for it there"


def test_c33_parts_of_text_are_their_joined_string_and_others_are_refused(
    service: Service,
) -> None:
    parts = [
        {"type": "text", "text": "How many a's are in "},
        {"type": "text", "text": "'banana'?"},
    ]
    joined = asked("How many a's are in 'banana'?")
    answers = [
        post(service, body).json()["choices"]
        for body in (joined, {**joined, "messages": message(content=parts)})
    ]
    assert answers[0] == answers[1]
    for kind in ("image_url", "input_audio", "file"):
        error = refused(service, messages=message(content=[{"type": kind, kind: {"url": "x"}}]))
        assert error["code"] == "unsupported_parameter"


def test_c35_a_choice_of_tools_needs_tools(service: Service) -> None:
    function = {"type": "function", "function": {"name": "f"}}
    for choice in ("required", function):
        assert (refused(service, tool_choice=choice)["param"] or "").startswith("tool")


def test_c36_unknown_fields_are_named_and_odd_text_is_handled(service: Service) -> None:
    reply = post(service, asked(verbosity="low", store=True, max_tokens=1))
    assert reply.status_code == 200
    assert set(reply.headers["x-deeprequest-ignored"].split(", ")) == {"verbosity", "store"}
    surrogate = b'{"model": "%b", "messages": [{"role": "user", "content": "\\ud800"}]}'
    error_of(post(service, surrogate % MODEL.encode()), 400)
    assert post(service, asked("a\0b", max_tokens=1)).status_code == 200


def test_c36_a_megabyte_of_one_character_stalls_nobody(service: Service) -> None:
    flood = asked("a" * 2**20)
    with ThreadPoolExecutor(12) as pool:
        floods = [pool.submit(post, service, flood) for _ in range(8)]
        others = [pool.submit(post, service, asked(max_tokens=5)) for _ in range(4)]
    assert {job.result().status_code for job in floods} == {400}
    assert {job.result().status_code for job in others} == {200}


def test_c36_nothing_that_is_refused_reaches_the_engine(service: Service) -> None:
    before = settled(service, PROMPT_TOKENS)
    wrongs: list[dict[str, Any]] = [{"temperature": 3}, {"messages": []}, {"n": 0}]
    with httpx.Client(base_url=service.url, headers=bearer(service)) as client:
        for fields in wrongs:
            assert client.post(CHAT, json=asked(**fields)).status_code == 400
    assert settled(service, PROMPT_TOKENS) == before
