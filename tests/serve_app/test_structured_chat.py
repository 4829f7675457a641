"""What a chat with a form of its answer hands to the engine, or is refused for."""

from typing import Any

import pytest

from cluster.request import SamplingParams
from cluster.text.json_grammar import ANY_OBJECT, json_answer
from cluster.text.tool_calls import CallRule, Tool, answer_with_calls
from cluster.text.trial_process import OUT_OF_TIME
from serve_app import answer_grammars
from serve_app.deltas import Submission
from serve_app.grammar_gate import GrammarGate
from tests.serve_app.site import Site, error_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

pytestmark = pytest.mark.anyio


def asked(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


async def submitted(
    site: Site, monkeypatch: pytest.MonkeyPatch, **fields: Any
) -> list[SamplingParams]:
    params: list[SamplingParams] = []
    await site.world.replica()
    submit = site.replica.submit

    async def watched(submission: bytes) -> None:
        params.extend(request.params for request in Submission.decode(submission).requests)
        await submit(submission)

    monkeypatch.setattr(site.replica, "submit", watched)
    reply = await site.chat(await site.bearer(), **fields)
    assert reply.status_code == 200, reply.text
    message = reply.json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("hi", "hm")
    return params


async def test_every_choice_is_held_to_the_grammar_of_the_schema(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = await submitted(site, monkeypatch, response_format=asked(SCHEMA), n=2)
    assert [each.grammar for each in params] == [json_answer(SCHEMA)] * 2
    assert all(each.thinking is not None for each in params)
    (params_,) = await submitted(site, monkeypatch, response_format={"type": "json_object"})
    assert params_.grammar == json_answer(ANY_OBJECT)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_schema_that_cannot_be_held_to_is_refused_before_anything_is_reserved(
    site: Site, stream: bool
) -> None:
    await site.world.replica()
    key = await site.bearer(rpm=1)
    overlapping = {"oneOf": [{"type": "integer"}, {"type": "number"}]}
    for _ in range(3):
        reply = await site.chat(key, response_format=asked(overlapping), stream=stream)
        assert reply.status_code == 400
        error = error_of(reply)
        assert error["param"] == "response_format.json_schema.schema"
        assert "'oneOf'" in error["message"]
    assert (await site.chat(key, response_format=asked(SCHEMA))).status_code == 200
    assert await site.counted() == {"400": 3, "200": 1}


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


async def test_an_answer_that_may_call_is_held_to_the_tools(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = [tool("f", SCHEMA), tool("g", SCHEMA)]
    chosen = {"type": "function", "function": {"name": "g"}}
    both = [Tool("f", "", SCHEMA), Tool("g", "", SCHEMA)]
    for fields, grammar in (
        ({}, answer_with_calls(both, CallRule(False, True))),
        ({"tool_choice": "required"}, answer_with_calls(both, CallRule(True, True))),
        ({"tool_choice": chosen}, answer_with_calls(both[1:], CallRule(True, False))),
        ({"tool_choice": "none"}, None),
        (
            {"response_format": asked(SCHEMA)},
            answer_with_calls(both, CallRule(False, True), SCHEMA),
        ),
    ):
        (params,) = await submitted(site, monkeypatch, tools=tools, **fields)
        assert params.grammar == grammar


async def test_the_schema_at_fault_is_named_among_many(site: Site) -> None:
    await site.world.replica()
    key = await site.bearer()
    overlapping = {"oneOf": [{"type": "integer"}, {"type": "number"}]}
    bad = tool("g", {"type": "object", "properties": {"x": overlapping}})
    reply = await site.chat(key, tools=[tool("f", SCHEMA), bad])
    assert error_of(reply)["param"] == "tools[1].function.parameters"
    format_ = asked(overlapping)
    reply = await site.chat(key, tools=[tool("f", SCHEMA)], response_format=format_)
    assert error_of(reply)["param"] == "response_format.json_schema.schema"


async def test_no_schema_is_looked_for_where_finding_out_took_too_long(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def out_of_time(_: GrammarGate, source: str) -> str:
        tried.append(source)
        return f"{OUT_OF_TIME} 2 s"

    monkeypatch.setattr(GrammarGate, "report", out_of_time)
    await site.world.replica()
    key = await site.bearer()
    tools = [tool(name, SCHEMA) for name in "fgh"]
    for asks, param in ((tools, "tools"), (tools[:1], "tools[0].function.parameters")):
        tried.clear()
        error = error_of(await site.chat(key, tools=asks))
        assert (error["param"], len(tried)) == (param, 1)
        assert "too complex" in error["message"]


async def test_tools_beyond_all_bounds_are_refused_as_a_whole(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.world.replica()
    monkeypatch.setattr(answer_grammars, "MAX_GRAMMAR_CHARS", 300)
    reply = await site.chat(await site.bearer(), tools=[tool("f", SCHEMA), tool("g", SCHEMA)])
    error = error_of(reply)
    assert (reply.status_code, error["param"]) == (400, "tools")
    assert "too complex" in error["message"]
