from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import Tokenizer
from cluster.thinking import Thinking
from serve_app.openai.schema import ChatCompletionRequest, parse_chat_request
from serve_app.thinking_rules import ThinkingRules

DEMO = Path(__file__).parents[2] / "configs" / "models" / "deeprequest-demo"
TOKENIZER = Tokenizer(DEMO)
TEMPLATE = ChatTemplate(TOKENIZER)
END = TOKENIZER.think_end_id
CLOSE = (END, *TOKENIZER.encode("\n\n"))
QUESTION = {"role": "user", "content": "hi"}
OPEN = TEMPLATE.render([Message("user", "hi")])


def asked(*messages: dict[str, Any], **fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [QUESTION, *messages], **fields}
    return parse_chat_request(orjson.dumps(body)).request


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({}, "open"),
        ({"thinking_budget": 5}, "open"),
        ({"thinking_budget": 0}, "closed"),
        ({"reasoning_effort": "none"}, "closed"),
        ({"thinking": {"type": "disabled"}}, "closed"),
        ({"answer_reserve": True, "max_tokens": 2}, "closed"),
        ({"add_generation_prompt": False}, "bare"),
        ({"add_generation_prompt": True}, "open"),
    ],
    ids=str,
)
def test_the_prompt_ends_as_the_thoughts_are_asked_for(fields: dict[str, Any], ending: str) -> None:
    assert ThinkingRules(TOKENIZER, "").ending(asked(**fields)) == ending


def test_a_continued_turn_has_its_own_ending() -> None:
    turn = {"role": "assistant", "content": "ho"}
    request = asked(turn, continue_final_message=True, thinking_budget=0)
    assert ThinkingRules(TOKENIZER, "").ending(request) == "continued"


def test_thoughts_that_a_client_opened_are_closed_at_once_by_a_budget_of_nothing() -> None:
    turn = {"role": "assistant", "content": "<think>\nLet me"}
    request = asked(turn, continue_final_message=True, thinking_budget=0)
    prompt = TEMPLATE.render(request.conversation(), "continued")
    rule = ThinkingRules(TOKENIZER, "\n").rule(request, prompt)
    assert rule is not None
    assert (rule.budget, rule.closing) == (0, CLOSE)


def test_where_no_thoughts_begin_there_is_no_rule() -> None:
    rules = ThinkingRules(TOKENIZER, "\n")
    for ending in ("closed", "bare"):
        prompt = TEMPLATE.render([Message("user", "hi")], ending)
        assert rules.rule(asked(thinking_budget=9), prompt) is None


@given(
    budget=st.integers(1, 20),
    words=st.sampled_from(["", "\n", "\nTime is up, so here is my answer.\n"]),
)
@settings(deadline=None)
def test_closing_words_count_within_the_budget(budget: int, words: str) -> None:
    rule = ThinkingRules(TOKENIZER, words).rule(asked(thinking_budget=budget), OPEN)
    thinking = Thinking(rule)
    said = []
    while not thinking.answering:
        said.append(5 if thinking.forced is None else thinking.forced)
        thinking.push(said[-1])
    closing = TOKENIZER.encode_content(words) if words else []
    assert thinking.num_tokens == budget
    assert said[-len(CLOSE) :] == list(CLOSE)
    assert (said[budget - len(closing) : budget] == closing) or len(closing) >= budget


@pytest.mark.parametrize("breaker", [True, False])
def test_the_loop_breaker_is_on_unless_switched_off(breaker: bool) -> None:
    fields = {} if breaker else {"loop_breaker": False}
    rule = ThinkingRules(TOKENIZER, "\n").rule(asked(**fields), OPEN)
    assert rule is not None
    assert (rule.budget, rule.breaks_loops) == (None, breaker)
