from typing import Any

import orjson
import pytest

from cluster.text.tool_calls import CallRule, Tool
from serve_app.openai.errors import ApiError
from serve_app.openai.schema import ChatCompletionRequest, parse_chat_request
from serve_app.openai.tool_choice import MAX_TOOLS

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CANARY = "canary-3f9a"


def tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": CITY, **function}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    asked = {"mode": mode, "tools": [named(name) for name in names]}
    return {"type": "allowed_tools", "allowed_tools": asked}


def parse(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat_request(orjson.dumps(body)).request


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    assert CANARY not in f"{caught.value.message}{caught.value.param}"
    return caught.value


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({}, CallRule(required=False, parallel=True)),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, CallRule(False, False)),
        ({"tool_choice": "required"}, CallRule(required=True, parallel=True)),
        ({"tool_choice": "required", "parallel_tool_calls": True}, CallRule(True, True)),
        ({"tool_choice": named("map")}, CallRule(required=True, parallel=False)),
        ({"tool_choice": "none"}, None),
    ],
    ids=str,
)
def test_what_may_be_called_follows_the_choice(
    fields: dict[str, Any], rule: CallRule | None
) -> None:
    calling = parse(tools=[tool(), tool("map")], **fields).calling
    assert (calling.rule if calling else None) == rule
    if calling is not None:
        only = fields.get("tool_choice") == named("map")
        assert [one.name for one in calling.tools] == (["map"] if only else ["weather", "map"])


@pytest.mark.parametrize(
    ("mode", "parallel", "rule"),
    [
        ("auto", None, CallRule(required=False, parallel=True)),
        ("required", None, CallRule(required=True, parallel=True)),
        ("required", False, CallRule(required=True, parallel=False)),
    ],
)
def test_of_the_allowed_alone_may_be_called(
    mode: str, parallel: bool | None, rule: CallRule
) -> None:
    choice = allowed(mode, "sort", "map")
    tools = [tool(), tool("map"), tool("sort")]
    calling = parse(tools=tools, tool_choice=choice, parallel_tool_calls=parallel).calling
    assert calling is not None
    assert ([one.name for one in calling.tools], calling.rule) == (["map", "sort"], rule)


def test_without_tools_nothing_may_be_called() -> None:
    for fields in ({}, {"tools": None}, {"tool_choice": "none"}, {"tool_choice": None}):
        request = parse(**fields)
        assert request.calling is None
        assert request.shown_reasoning() == "think_tags"


def test_what_nobody_reads_may_be_of_any_depth() -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    tools = [tool(more=deep) | {"other": deep}]
    parsed = parse_chat_request(orjson.dumps({**body, "tools": tools}))
    assert set(parsed.ignored) == {"tools.other", "tools.function.more"}


def test_a_function_without_parameters_takes_nothing() -> None:
    bare = {"type": "function", "function": {"name": "now"}}
    calling = parse(tools=[bare, tool("open", parameters={}, description="Opens.")]).calling
    assert calling is not None
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    assert calling.tools == [Tool("now", "", nothing), Tool("open", "Opens.", {"type": "object"})]


@pytest.mark.parametrize(
    ("format_", "shown"), [(None, "split"), ("think_tags", "split"), ("hidden", "hidden")]
)
def test_answers_with_tools_are_told_apart_from_the_thoughts(
    format_: str | None, shown: str
) -> None:
    assert parse(tools=[tool()], reasoning_format=format_).shown_reasoning() == shown


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": []}, "tools", "invalid_value"),
        ({"tools": {}}, "tools", "invalid_type"),
        ({"tools": [tool(f"f{n}") for n in range(MAX_TOOLS + 1)]}, "tools", "invalid_value"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [tool(), tool("a b")]}, "tools[1].function.name", "invalid_value"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name", "invalid_value"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "invalid_type"),
        (
            {"tools": [tool(parameters={"type": "string"})]},
            "tools[0].function.parameters",
            "invalid_value",
        ),
        (
            {"tools": [tool(parameters={"properties": {"x": {"not": {}}}})]},
            "tools[0].function.parameters",
            "invalid_value",
        ),
        ({"tools": [tool(f"f{n}", description="x" * 3000) for n in range(60)]}, "tools", None),
        ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
        ({"tool_choice": named(CANARY)}, "tool_choice", "invalid_value"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls", "invalid_value"),
        ({"tools": [tool()], "tool_choice": "always"}, "tool_choice", "invalid_value"),
        ({"tools": [tool()], "tool_choice": 1}, "tool_choice", "invalid_type"),
        ({"tools": [tool()], "tool_choice": named(CANARY)}, "tool_choice.function.name", None),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function", None),
        ({"tool_choice": allowed("auto", "weather")}, "tool_choice", "invalid_value"),
        (
            {"tools": [tool()], "tool_choice": allowed("auto", "weather", CANARY)},
            "tool_choice.allowed_tools.tools[1].function.name",
            "invalid_value",
        ),
        (
            {"tools": [tool()], "tool_choice": allowed("none", "weather")},
            "tool_choice.allowed_tools.mode",
            "invalid_value",
        ),
        (
            {"tools": [tool()], "tool_choice": allowed("auto")},
            "tool_choice.allowed_tools.tools",
            "invalid_value",
        ),
        (
            {"tools": [tool()], "tool_choice": {"type": "allowed_tools"}},
            "tool_choice.allowed_tools",
            "missing_required_parameter",
        ),
        ({"tools": [tool()], "ignore_eos": True}, "ignore_eos", "invalid_value"),
        ({"tools": [tool()], "min_tokens": 2}, "min_tokens", "invalid_value"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ],
)
def test_what_cannot_be_is_refused_by_the_field_at_fault(
    fields: dict[str, Any], param: str, code: str | None
) -> None:
    error = refused(**fields)
    assert error.param == param
    assert code in (None, error.code)


def test_a_choice_of_another_kind_is_told_the_kinds_that_are_known() -> None:
    error = refused(tools=[tool()], tool_choice={"type": "custom", "custom": {"name": "weather"}})
    assert error.param == "tool_choice.type"
    assert error.message.endswith("must be 'function' or 'allowed_tools'.")
    among = {"type": "custom", "custom": {"name": "weather"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [among]}}
    error = refused(tools=[tool()], tool_choice=choice)
    assert error.param == "tool_choice.allowed_tools.tools[0].type"
    assert error.message.endswith("must be 'function'.")
