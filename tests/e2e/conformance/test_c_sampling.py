"""Checklist C, items 24 and 28 to 30: sampling parameters out of bounds never reach the engine."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.conformance.wire import MODEL, asked, error_of, post
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e


def refused(service: Service, param: str, **fields: Any) -> None:
    """The field is named in the envelope, plain and streamed alike; its value is not."""
    for stream in (False, True):
        error = error_of(post(service, asked(**fields, stream=stream)), 400)
        assert error["param"] == param
        assert error["code"] in ("invalid_value", "invalid_type")
        assert param in error["message"]
        assert "canary" not in json.dumps(error)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "canary"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", 1.5),
        ("min_p", -0.1),
        ("presence_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("penalty_scope", "canary"),
        ("seed", 2**63),
        ("min_tokens", 201),
        ("stop_token_ids", [-1]),
    ],
)
def test_c24_sampling_out_of_bounds(service: Service, field: str, value: Any) -> None:
    name = f"{field}[0]" if isinstance(value, list) else field
    refused(service, name, **{field: value})


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_c24_numbers_that_are_none(service: Service, number: bytes) -> None:
    body = json.dumps(asked(temperature=7)).encode().replace(b'"temperature": 7', b"%b")
    assert b"%b" in body
    reply = post(service, body.replace(b"%b", b'"temperature": ' + number))
    error_of(reply, 400)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_logprobs": 5},
        {"logprobs": False, "top_logprobs": 1},
        {"logprobs": True, "top_logprobs": 21},
        {"logprobs": True, "top_logprobs": -1},
        {"logprobs": True, "top_logprobs": 2.5},
    ],
)
def test_c28_top_logprobs_without_logprobs_or_out_of_bounds(
    service: Service, fields: dict[str, Any]
) -> None:
    refused(service, "top_logprobs", **fields)


@pytest.mark.parametrize(
    "bias",
    [
        {"canary": 1},
        {"1.5": 1},
        {"-1": 1},
        {"999999": 1},
        {"5": 101},
        {"5": -100.1},
        {"5": "canary"},
        {str(token): 1 for token in range(1025)},
        [5],
    ],
    ids=lambda bias: str(bias)[:30],
)
def test_c29_logit_bias_out_of_bounds(service: Service, bias: Any) -> None:
    refused(service, "logit_bias", logit_bias=bias)


@pytest.mark.parametrize(
    ("stop", "param"),
    [
        (["x"] * 17, "stop"),
        ("x" * 257, "stop"),
        (["a", "x" * 257], "stop[1]"),
        ("", "stop"),
        (["a", ""], "stop[1]"),
        ([7], "stop[0]"),
        ({}, "stop"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_c30_stop_out_of_bounds(service: Service, stop: Any, param: str) -> None:
    refused(service, param, stop=stop)


ODD_VALUES: list[Any] = [
    *(-1, 0, 1, 2, 101, 2**31, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30),
    *(-0.0, 0.5, 1e-30, 5e-324, 1e308, -1e308, "1", "", True, None, [], [0], {}, {"0": 1e-30}),
]
NUMBERS = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "stop",
    "stop_token_ids",
    "ignore_eos",
]


def test_c24_any_value_in_any_field_is_served_or_refused_and_costs_nobody_else(
    service: Service,
) -> None:
    calm = asked(max_tokens=20, logprobs=True)
    before = post(service, calm).json()["choices"]

    def status(case: tuple[str, Any]) -> int:
        field, value = case
        return post(service, asked(**{"max_tokens": 2, "temperature": 1, field: value})).status_code

    cases = [(field, value) for field in NUMBERS for value in ODD_VALUES]
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(status, cases))
    odd = [case for case, found in zip(cases, statuses, strict=True) if found not in (200, 400)]
    assert odd == []
    assert {200, 400} == set(statuses)
    assert post(service, calm).json()["choices"] == before


def test_the_sdk_raises_for_what_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], logit_bias={"999999": 1}
        )
    assert caught.value.param == "logit_bias"
    assert caught.value.code == "invalid_value"


def test_what_is_just_within_bounds_is_served(service: Service) -> None:
    edges = asked(
        temperature=2,
        top_p=1,
        top_k=-1,
        min_p=1,
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=2,
        seed=-(2**63),
        logprobs=True,
        top_logprobs=20,
        logit_bias={str(token): 100 for token in range(650)},
        stop=["x" * 256] * 16,
        max_tokens=3,
        min_tokens=3,
    )
    reply = post(service, edges).json()
    assert len(reply["choices"][0]["logprobs"]["content"]) >= 3
