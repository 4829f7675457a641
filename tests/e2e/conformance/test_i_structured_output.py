"""Checklist I, structured output: answers of a form, by the SDK and below it."""

import json
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any, Literal

import jsonschema
import openai
import pytest
from openai import LengthFinishReasonError
from pydantic import BaseModel, Field

from tests.cluster.text.grammar_bombs import BOMBS
from tests.e2e.conformance.structured_schemas import SCHEMAS
from tests.e2e.conformance.wire import CHAT, asked, chunks, error_of, post, text_of
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e

BRIEF: dict[str, Any] = {"max_tokens": 700, "thinking_token_budget": 24}
"""Enough for short thoughts and any of the answers here."""


def form(schema: dict[str, Any]) -> dict[str, Any]:
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"type": "json_schema", "json_schema": named}


def whole(service: Service, **fields: Any) -> dict[str, Any]:
    reply = post(service, asked(**{**BRIEF, **fields}))
    assert reply.status_code == 200, reply.text
    choice: dict[str, Any] = reply.json()["choices"][0]
    return choice


def held(schema: dict[str, Any], content: str) -> None:
    jsonschema.validate(json.loads(content), schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", SCHEMAS)
def test_i97_every_finished_answer_satisfies_its_schema_streamed_and_not(
    service: Service, name: str, seed: int
) -> None:
    schema = SCHEMAS[name]
    sampled: dict[str, Any] = {"temperature": 1.0, "seed": seed} if seed else {}
    body = BRIEF | sampled | {"response_format": form(schema)}
    choice = whole(service, **body)
    assert choice["finish_reason"] == "stop", choice
    held(schema, choice["message"]["content"])
    streamed = chunks(service, asked(**body))
    assert text_of(streamed) == choice["message"]["content"]
    assert text_of(streamed, "reasoning") == choice["message"]["reasoning"]


def test_i94_the_thoughts_before_an_answer_with_a_form_are_free(service: Service) -> None:
    plain = whole(service, reasoning_format="split", thinking_token_budget=-1)
    for response_format in ({"type": "json_object"}, form(SCHEMAS["enum"])):
        choice = whole(
            service, response_format=response_format, max_tokens=900, thinking_token_budget=-1
        )
        message = choice["message"]
        assert message["reasoning"] == message["reasoning_content"]
        assert message["reasoning"] == plain["message"]["reasoning"]
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(message["content"]), dict)
        assert not message["content"].startswith("<")


def test_i94_json_mode_gives_an_object(service: Service) -> None:
    finished = 0
    for seed in range(8):
        body = BRIEF | {"temperature": 1.0, "seed": seed, "max_tokens": 1500}
        choice = whole(service, **body, response_format={"type": "json_object"})
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)
            finished += 1
    assert finished


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("effort", ["none", "minimal"])
def test_i95_an_answer_without_thoughts_has_its_form_from_the_first_token(
    service: Service, effort: str, stream: bool
) -> None:
    schema = SCHEMAS["nested arrays"]
    body = asked(response_format=form(schema), reasoning_effort=effort, max_tokens=900)
    if stream:
        content = text_of(chunks(service, body))
    else:
        message = post(service, body).json()["choices"][0]["message"]
        content = message["content"]
        assert bool(message["reasoning"]) == (effort != "none")
    held(schema, content)


@pytest.mark.parametrize(
    "asks", [{"reasoning_format": "hidden"}, {"include_reasoning": False}], ids=str
)
def test_i95_hidden_thoughts_stay_hidden_and_the_form_holds(
    service: Service, asks: dict[str, Any]
) -> None:
    choice = whole(service, response_format=form(SCHEMAS["enum"]), **asks)
    assert not choice["message"].get("reasoning")
    held(SCHEMAS["enum"], choice["message"]["content"])


def test_i95_every_choice_has_the_form(service: Service) -> None:
    body = asked(**BRIEF, response_format=form(SCHEMAS["enum"]), n=4, temperature=1.5, seed=3)
    choices = post(service, body | {"temperature": 1.5}).json()["choices"]
    assert len(choices) == 4
    for choice in choices:
        held(SCHEMAS["enum"], choice["message"]["content"])


def test_i96_truncated_json_ends_with_length(service: Service) -> None:
    body = {**BRIEF, "thinking_token_budget": 0, "max_tokens": 5}
    choice = whole(service, **body, response_format=form(SCHEMAS["nested arrays"]))
    assert choice["finish_reason"] == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(choice["message"]["content"])


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Part(BaseModel):
    name: str = Field(max_length=6)
    count: int = Field(ge=0, le=99)


class Order(BaseModel):
    size: Size
    parts: list[Part] = Field(max_length=2)
    note: Literal["fragile", "heavy"] | None
    nested: "Order | None" = None


def test_i97_the_sdk_parses_what_its_own_schema_asks_for(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="deepseek-r1-32b",
        messages=[{"role": "user", "content": "Order two parts."}],
        response_format=Order,
        max_tokens=1500,
        temperature=0,
        extra_body={"thinking_token_budget": 8},
    )
    assert isinstance(reply.choices[0].message.parsed, Order)
    with client.chat.completions.stream(
        model="deepseek-r1-32b",
        messages=[{"role": "user", "content": "Order two parts."}],
        response_format=Part,
        max_tokens=900,
        temperature=0,
        extra_body={"thinking_token_budget": 8},
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Part)
    with pytest.raises(LengthFinishReasonError):
        client.chat.completions.parse(
            model="deepseek-r1-32b",
            messages=[{"role": "user", "content": "Order two parts."}],
            response_format=Order,
            max_tokens=10,
            extra_body={"thinking_token_budget": 0},
        )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("keyword", ["not", "uniqueItems", "if", "contains", "propertyNames"])
def test_i98_an_unsupported_keyword_is_named_before_anything_is_generated(
    service: Service, keyword: str, stream: bool
) -> None:
    before = service.metric("deeprequest_generation_tokens_total")
    schema = {"type": "object", "properties": {"x": {keyword: {}}}}
    reply = post(service, asked(response_format=form(schema), stream=stream))
    error = error_of(reply, 400)
    assert f"'{keyword}'" in error["message"]
    assert error["param"] == "response_format.json_schema.schema"
    assert service.metric("deeprequest_generation_tokens_total") == before


def test_i98_bombs_are_refused_or_served_and_everybody_else_goes_on(service: Service) -> None:
    canary = asked()
    expected = post(service, canary).json()["choices"][0]["message"]["content"]

    def bomb(name: str) -> int:
        fields = {"response_format": form(BOMBS[name]), "max_tokens": 40}
        reply = post(service, asked(**{**BRIEF, **fields}))
        if reply.status_code == 400:
            error_of(reply, 400)
        return reply.status_code

    assert len(BOMBS) >= 30
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(bomb, BOMBS))
        answers = list(pool.map(lambda _: post(service, canary), range(8)))
    assert set(statuses) <= {200, 400}
    assert {reply.json()["choices"][0]["message"]["content"] for reply in answers} == {expected}


@pytest.mark.parametrize(
    ("response_format", "param"),
    [
        ({"type": "json_schema"}, "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "x"}},
            "response_format.json_schema.schema",
        ),
        (form({"type": "nothing"}), "response_format.json_schema.schema"),
        (form({"enum": list(range(2000))}), "response_format.json_schema.schema"),
        (form({"description": "x" * 70_000}), "response_format.json_schema.schema"),
        (form(BOMBS["anyOf nested 200 deep"]), "response_format.json_schema.schema"),
    ],
    ids=["missing", "no schema", "invalid", "choices", "size", "depth"],
)
def test_c34_a_form_that_cannot_be_is_refused_by_its_field(
    service: Service, response_format: dict[str, Any], param: str
) -> None:
    error = error_of(post(service, asked(response_format=response_format), path=CHAT), 400)
    assert error["param"] == param
