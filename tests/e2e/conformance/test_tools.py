"""Tools: calls forced by the grammar, told in OpenAI's shape, and their results in the history."""

import json
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from cluster.text.tokenizer import Tokenizer
from cluster.text.tool_calls import MAX_CALLS
from tests.e2e.conformance.structured_schemas import DIGIT, items, record, text
from tests.e2e.conformance.wire import MODEL, asked, chunks, error_of, post, text_of
from tests.e2e.service import ROOT, Service

pytestmark = pytest.mark.e2e

WEATHER = record(city=text(), days=DIGIT)
SORT = record(words=items({"enum": ["b", "a", "ä"]}, 3))
PARAMETERS = {"weather": WEATHER, "sort": SORT, "now": record()}
DEMO = ROOT / "configs" / "models" / "deeprequest-demo"
BRIEF: dict[str, Any] = {"max_tokens": 700, "thinking_token_budget": 12}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS[name], **more}}


TOOLS = [tool("weather", description="How it will be."), tool("sort"), tool("now")]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def fits(call: dict[str, Any]) -> bool:
    """Whether a call is of one of the tools, with arguments that it takes."""
    assert set(call) == {"id", "type", "function"}
    assert call["type"] == "function"
    function = call["function"]
    jsonschema.validate(json.loads(function["arguments"]), PARAMETERS[function["name"]])
    return True


def put_together(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A stream's calls, without their ids."""
    calls: list[dict[str, Any]] = []
    for chunk in found:
        for entry in chunk["choices"][0]["delta"].get("tool_calls", []):
            if "id" in entry:
                calls.append({"name": entry["function"]["name"], "arguments": ""})
            calls[entry["index"]]["arguments"] += entry["function"]["arguments"]
    return calls


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("choice", ["required", named("weather"), named("sort")], ids=str)
def test_a_call_that_must_be_made_is_made_streamed_and_not(
    service: Service, choice: Any, seed: int
) -> None:
    body = asked(**{**BRIEF, "tools": TOOLS, "tool_choice": choice, "seed": seed})
    body |= {"temperature": float(seed > 0), "parallel_tool_calls": False}
    whole = post(service, body).json()["choices"][0]
    (call,) = whole["message"]["tool_calls"]
    assert fits(call)
    assert (whole["finish_reason"], whole["message"]["content"]) == ("tool_calls", None)
    assert whole["message"]["reasoning"]
    if choice != "required":
        assert call["function"]["name"] == choice["function"]["name"]
    streamed = chunks(service, body)
    assert put_together(streamed) == [call["function"]]
    assert streamed[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert text_of(streamed) == ""
    assert text_of(streamed, "reasoning") == whole["message"]["reasoning"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_an_allowed_tool_alone_is_called(service: Service, name: str) -> None:
    choice = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [named(name)]},
    }
    body = asked(**{**BRIEF, "tools": TOOLS, "tool_choice": choice})
    calls = post(service, body).json()["choices"][0]["message"]["tool_calls"]
    assert {call["function"]["name"] for call in calls} == {name}
    assert all(fits(call) for call in calls)


def test_several_calls_have_ids_of_their_own_and_come_to_an_end(service: Service) -> None:
    endless = {str(Tokenizer(DEMO).eos_id): -100}
    fields = {**BRIEF, "tools": TOOLS, "tool_choice": "required", "logit_bias": endless}
    body = asked(**{**fields, "temperature": 1.0, "seed": 1, "max_tokens": 3000})
    choice = post(service, body).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    calls = choice["message"]["tool_calls"]
    assert all(fits(call) for call in calls)
    assert len({call["id"] for call in calls}) == len(calls) == MAX_CALLS
    assert put_together(chunks(service, body)) == [call["function"] for call in calls]
    alone = post(service, {**body, "parallel_tool_calls": False}).json()["choices"][0]
    assert [fits(call) for call in alone["message"]["tool_calls"]] == [True]


@pytest.mark.parametrize("choice", ["auto", "none", None])
def test_the_model_may_answer_in_text(service: Service, choice: str | None) -> None:
    fields: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "max_tokens": 400}
    whole = post(service, asked(**fields)).json()["choices"][0]
    message = whole["message"]
    assert message["reasoning"]
    if "tool_calls" in message:
        assert choice != "none"
        assert all(fits(call) for call in message["tool_calls"])
    else:
        assert whole["finish_reason"] == "stop"
        assert message["content"]
        assert text_of(chunks(service, asked(**fields))) == message["content"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("likes", "calls"), [("<", True), ("{", False)])
def test_the_model_decides_whether_to_call_or_to_give_the_form_that_is_asked_for(
    service: Service, likes: str, calls: bool, stream: bool
) -> None:
    (liked,) = Tokenizer(DEMO).encode_content(likes)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": WEATHER}}
    body = asked(
        tools=[tool("weather")],
        parallel_tool_calls=False,
        response_format=form,
        logit_bias={str(liked): 100},
        reasoning_effort="none",
    )
    if stream:
        found = chunks(service, body)
        texts = [call["arguments"] for call in put_together(found)] or [text_of(found)]
        reason = found[-1]["choices"][0]["finish_reason"]
    else:
        choice = post(service, body).json()["choices"][0]
        message, reason = choice["message"], choice["finish_reason"]
        made = message.get("tool_calls", [])
        texts = [call["function"]["arguments"] for call in made] or [message["content"]]
    assert reason == ("tool_calls" if calls else "stop")
    (text,) = texts
    jsonschema.validate(json.loads(text), WEATHER)


def test_results_of_calls_are_part_of_the_prompt(service: Service) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    history: list[dict[str, Any]] = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "It is noon."},
    ]
    body = asked(tools=TOOLS, messages=history)
    rendered = post(service, body, path="/v1/chat/completions/render").json()
    prompt = json.dumps(rendered)
    for part in ("It is noon.", "weather", "How it will be."):
        assert part in prompt
    assert post(service, body).status_code == 200


class Weather(BaseModel):
    city: str = Field(max_length=6)
    days: int = Field(ge=1, le=9)


def test_the_sdk_parses_calls_whole_and_streamed(client: openai.OpenAI) -> None:
    asks: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "How will it be in Rome?"}],
        "tools": [openai.pydantic_function_tool(Weather)],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 700,
        "extra_body": {"thinking_token_budget": 8},
    }
    reply = client.chat.completions.parse(**asks)
    (call,) = reply.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)
    with client.chat.completions.stream(**asks) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": named("weather")}, "tool_choice"),
        ({"tools": [tool("now")], "tool_choice": named("weather")}, "tool_choice.function.name"),
        ({"tools": []}, "tools"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": [tool("now"), tool("now")]}, "tools[1].function.name"),
        (
            {"tools": [tool("now", parameters={"properties": {"x": {"not": {}}}})]},
            "tools[0].function.parameters",
        ),
        (
            {"messages": [{"role": "tool", "tool_call_id": "c1", "content": "x"}]},
            "messages[0].tool_call_id",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_c35_tools_that_do_not_fit_are_refused_by_the_field(
    service: Service, fields: dict[str, Any], param: str, stream: bool
) -> None:
    before = service.metric("deeprequest_generation_tokens_total")
    error = error_of(post(service, asked(**{"stream": stream, **fields})), 400)
    assert error["param"] == param
    assert service.metric("deeprequest_generation_tokens_total") == before
