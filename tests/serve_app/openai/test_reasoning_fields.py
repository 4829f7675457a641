from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.openai.errors import ApiError
from serve_app.openai.reasoning_fields import EFFORT_BUDGETS
from serve_app.openai.schema import ChatCompletionRequest, ParsedRequest, parse_chat_request
from serve_app.tenancy.key_defaults import KeyDefaults

SAY_HI = [{"role": "user", "content": "hi"}]
BEGUN = [*SAY_HI, {"role": "assistant", "content": "ho"}]


def parse(**fields: Any) -> ParsedRequest:
    body = {"model": "deepseek-r1-32b", "messages": SAY_HI, **fields}
    return parse_chat_request(orjson.dumps(body))


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, "think_tags"),
        ({"reasoning_format": "split"}, "split"),
        ({"reasoning_format": "hidden"}, "hidden"),
        ({"include_reasoning": False}, "hidden"),
        ({"include_reasoning": True}, "think_tags"),
        ({"separate_reasoning": True}, "split"),
        ({"reasoning": {"exclude": True}}, "hidden"),
        ({"reasoning": {"exclude": False}}, "think_tags"),
        ({"separate_reasoning": True, "include_reasoning": False}, "hidden"),
        ({"reasoning_format": "split", "include_reasoning": False}, "hidden"),
    ],
)
def test_reasoning_format_and_its_other_names(fields: dict[str, Any], shown: str) -> None:
    assert parse(**fields).request.shown_reasoning() == shown


def test_a_default_of_the_key_gives_way_to_the_request() -> None:
    split, reserving = KeyDefaults(reasoning_format="split"), KeyDefaults(answer_reserve=True)
    assert parse().with_defaults(split).request.shown_reasoning() == "split"
    for asked in ({"separate_reasoning": False}, {"reasoning_format": "think_tags"}):
        request = parse(**asked).with_defaults(split).request
        assert request.shown_reasoning() == "think_tags"
    asks: dict[str, Any] = {"max_tokens": 64}
    assert parse(**asks).with_defaults(reserving).request.thinking_tokens(2) == 46
    refused = parse(**asks, answer_reserve=False).with_defaults(reserving).request
    assert refused.thinking_tokens(2) is None
    assert parse(**asks).with_defaults(KeyDefaults()).request == parse(**asks).request


def test_thoughts_are_streamed_whatever_is_said_and_that_is_told() -> None:
    assert parse(stream_reasoning=True).ignored == ()
    assert parse(stream_reasoning=False).ignored == ("stream_reasoning",)


BUDGET_NAMES: list[Any] = [
    lambda budget: {"thinking_token_budget": budget},
    lambda budget: {"thinking_budget": budget},
    lambda budget: {"reasoning": {"max_tokens": budget}},
    lambda budget: {"thinking": {"type": "enabled", "budget_tokens": budget}},
    lambda budget: {"chat_template_kwargs": {"thinking_token_budget": budget}},
    lambda budget: {"chat_template_kwargs": {"thinking_budget": budget}},
]
EFFORT_NAMES: list[Any] = [
    lambda effort: {"reasoning_effort": effort},
    lambda effort: {"reasoning": {"effort": effort}},
    lambda effort: {"chat_template_kwargs": {"reasoning_effort": effort}},
]


@pytest.mark.parametrize("named", BUDGET_NAMES)
@pytest.mark.parametrize(
    ("budget", "tokens"), [(1, 1), (32, 32), (2**31 - 1, 2**31 - 1), (-1, None)]
)
def test_a_budget_has_many_names(named: Any, budget: int, tokens: int | None) -> None:
    request, ignored = parse(**named(budget))
    assert request.thinking_tokens(2) == tokens
    assert ignored == ()


@pytest.mark.parametrize("named", EFFORT_NAMES)
@pytest.mark.parametrize(("effort", "tokens"), EFFORT_BUDGETS.items())
def test_an_effort_is_a_budget_by_a_word(named: Any, effort: str, tokens: int | None) -> None:
    request, ignored = parse(**named(effort))
    assert request.thinking_tokens(2) == tokens
    assert ignored == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking_token_budget": 0},
        {"thinking_budget": 0},
        {"reasoning": {"max_tokens": 0}},
        {"reasoning_effort": "none"},
        {"reasoning": {"enabled": False}},
        {"thinking": {"type": "disabled"}},
        {"chat_template_kwargs": {"thinking": False}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"thinking": {"type": "disabled"}, "reasoning_effort": "none", "thinking_budget": 0},
        {"thinking_budget": 0, "answer_reserve": True},
    ],
    ids=str,
)
def test_no_thoughts_can_be_asked_for_in_many_ways(fields: dict[str, Any]) -> None:
    assert parse(**fields).request.thinking_tokens(2) == 0


def test_thoughts_are_unbounded_unless_something_is_said() -> None:
    fields: list[dict[str, Any]] = [
        {},
        {"thinking": {"type": "enabled"}},
        {"reasoning": {"enabled": True}},
        {"reasoning": {}},
        {"chat_template_kwargs": {"thinking": True}},
        {"chat_template_kwargs": {}},
        {"answer_reserve": False},
    ]
    for asked in fields:
        assert parse(**asked).request.thinking_tokens(2) is None


def test_a_number_goes_before_a_word() -> None:
    assert parse(reasoning_effort="low", thinking_budget=7).request.thinking_tokens(2) == 7
    assert parse(reasoning_effort="low", thinking_budget=-1).request.thinking_tokens(2) == 1024


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"thinking_token_budget": 5, "thinking_budget": 6}, "thinking_budget"),
        ({"thinking_budget": 5, "reasoning": {"max_tokens": 6}}, "reasoning.max_tokens"),
        ({"thinking_budget": 5, "thinking": {"type": "disabled"}}, "thinking.type"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"reasoning_effort": "low", "reasoning": {"enabled": False}}, "reasoning.enabled"),
        ({"reasoning_effort": "none", "thinking_budget": 5}, "reasoning_effort"),
        ({"reasoning_effort": "low", "thinking_budget": 0}, "reasoning_effort"),
        ({"reasoning_effort": "none", "thinking": {"type": "enabled"}}, "thinking.type"),
        (
            {"chat_template_kwargs": {"thinking_budget": 5}, "thinking_budget": 4},
            "chat_template_kwargs.thinking_budget",
        ),
        (
            {"chat_template_kwargs": {"thinking": False}, "reasoning": {"enabled": True}},
            "chat_template_kwargs.thinking",
        ),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_refused(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert "contradicts" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"thinking_token_budget": -2}, "thinking_token_budget"),
        ({"thinking_token_budget": 2**31}, "thinking_token_budget"),
        ({"thinking_token_budget": True}, "thinking_token_budget"),
        ({"thinking_token_budget": 1.5}, "thinking_token_budget"),
        ({"thinking_budget": "32"}, "thinking_budget"),
        ({"reasoning": {"max_tokens": -2}}, "reasoning.max_tokens"),
        ({"reasoning": {"effort": "lots"}}, "reasoning.effort"),
        ({"reasoning": {"enabled": 1}}, "reasoning.enabled"),
        ({"reasoning": 5}, "reasoning"),
        ({"reasoning_effort": "lots"}, "reasoning_effort"),
        ({"reasoning_effort": 0.5}, "reasoning_effort"),
        ({"thinking": True}, "thinking"),
        ({"thinking": {}}, "thinking.type"),
        ({"thinking": {"type": "auto"}}, "thinking.type"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"budget": 5}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"thinking": "no"}}, "chat_template_kwargs.thinking"),
        ({"answer_reserve": 64}, "answer_reserve"),
        ({"loop_breaker": "on"}, "loop_breaker"),
        ({"continue_final_message": 1}, "continue_final_message"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": "no"}, "add_generation_prompt"),
        (
            {"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert error.code is not None


def test_a_template_option_that_nobody_reads_is_refused_with_those_that_are_read() -> None:
    message = refusal(chat_template_kwargs={"canary-3f9a": 1}).message
    assert "thinking_budget" in message
    assert "canary" not in message


def test_unknown_parts_of_reasoning_are_named_as_ignored() -> None:
    asked: dict[str, Any] = {"thinking": {"type": "enabled", "x": 1}, "reasoning": {"summary": "a"}}
    assert parse(**asked).ignored == ("reasoning.summary", "thinking.x")


@given(
    max_tokens=st.integers(1, 32768),
    num_closing=st.integers(1, 40),
    effort=st.none() | st.sampled_from([e for e in EFFORT_BUDGETS if e != "none"]),
)
@settings(max_examples=200, deadline=None)
def test_an_answer_reserve_leaves_a_quarter_to_the_answer(
    max_tokens: int, num_closing: int, effort: str | None
) -> None:
    fields = {"max_tokens": max_tokens, "answer_reserve": True, "reasoning_effort": effort}
    budget = parse(**fields).request.thinking_tokens(num_closing)
    assert budget is not None
    assert 0 <= budget < max_tokens
    left = max_tokens - budget - num_closing
    reserve = max(1, min(max_tokens / 4, 1024))
    assert left >= reserve or budget == 0
    if effort in (None, "max") and budget:
        assert left < reserve + 1


def test_an_answer_reserve_gives_way_to_a_budget() -> None:
    assert parse(max_tokens=64, answer_reserve=True).request.thinking_tokens(2) == 46
    asked = parse(max_tokens=64, answer_reserve=True, thinking_budget=60).request
    assert asked.thinking_tokens(2) == 60


def test_a_continued_turn_may_hold_its_thoughts_apart() -> None:
    turn = {"role": "assistant", "content": "", "reasoning_content": "Let me"}
    asked: dict[str, Any] = {"messages": [*SAY_HI, turn], "continue_final_message": True}
    for more in ({}, {"add_generation_prompt": False}):
        request = parse(**asked, **more).request
        assert request.conversation()[-1].thoughts == "Let me"


def test_every_field_of_thinking_is_documented() -> None:
    properties = ChatCompletionRequest.model_json_schema()["properties"]
    for name in ("thinking_token_budget", "answer_reserve", "loop_breaker", "reasoning_effort"):
        assert properties[name]["description"]
