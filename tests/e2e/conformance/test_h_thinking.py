"""Checklist H: control over thinking."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from cluster.text.tokenizer import THINK_END, THINK_START
from tests.e2e.conformance.thoughts import (
    END,
    SPLIT,
    STRAWBERRY,
    TOKENIZER,
    choice_of,
    usage_of,
    whole,
)
from tests.e2e.conformance.wire import asked, chunks, error_of, post
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e

OPEN = f"{THINK_START}\n"
CLOSING = (END, *TOKENIZER.encode("\n\n"))
LONG = "How many a's are in the word 'abracadabraabracadabra'?"
"""The demo model thinks of it for about 90 tokens."""


@pytest.mark.parametrize("budget", [1, 2, 7, 16, 32])
def test_h86_a_budget_closes_the_thoughts_and_the_answer_follows(
    client: openai.OpenAI, budget: int
) -> None:
    extra = {"thinking_token_budget": budget, **SPLIT}
    reply = client.chat.completions.create(**asked(STRAWBERRY), extra_body=extra)
    choice = reply.choices[0]
    details = reply.usage and reply.usage.completion_tokens_details
    assert details is not None
    assert details.reasoning_tokens == budget
    assert choice.message.content
    assert choice.finish_reason == "stop"
    told = choice.model_extra or {}
    assert (told["reasoning_truncated"], told["reasoning_stop"]) == (True, "budget")


def test_h86_thoughts_within_a_budget_are_left_alone(service: Service) -> None:
    free, bounded = choice_of(service), choice_of(service, thinking_budget=60)
    assert free["message"] == bounded["message"]
    assert (bounded["reasoning_truncated"], bounded["reasoning_stop"]) == (False, None)


def test_h86_the_close_is_made_of_tokens_that_count(service: Service) -> None:
    (choice,) = whole(service, stream=False, thinking_budget=16)["choices"]
    ids = choice["token_ids"]
    assert ids.index(END) == 16
    assert tuple(ids[16 : 16 + len(CLOSING)]) == CLOSING
    free = choice_of(service, return_token_ids=True)["token_ids"]
    assert ids[:16] == free[:16]
    thoughts = TOKENIZER.decode(free[:16])
    assert choice["message"]["content"].startswith(f"{OPEN}{thoughts}{THINK_END}\n\n")


SAME_BUDGET: list[dict[str, Any]] = [
    {"thinking_token_budget": 9},
    {"thinking_budget": 9},
    {"reasoning": {"max_tokens": 9}},
    {"thinking": {"type": "enabled", "budget_tokens": 9}},
    {"chat_template_kwargs": {"thinking_budget": 9}},
    {"chat_template_kwargs": {"thinking": True, "thinking_token_budget": 9}},
]


@pytest.mark.parametrize("asks", SAME_BUDGET, ids=str)
def test_h87_a_budget_by_any_name_is_the_same(service: Service, asks: dict[str, Any]) -> None:
    reply = whole(service, stream=False, **asks)
    assert usage_of(reply)[1] == 9
    expected = choice_of(service, thinking_token_budget=9)["message"]
    assert reply["choices"][0]["message"] == expected


@pytest.mark.parametrize("effort", ["minimal", "low", "medium", "high", "xhigh", "max"])
def test_h87_efforts_above_what_is_thought_change_nothing(service: Service, effort: str) -> None:
    free = choice_of(service)
    assert choice_of(service, reasoning_effort=effort) == free
    assert choice_of(service, reasoning={"effort": effort}) == free


def test_h87_the_least_effort_is_512_tokens(service: Service) -> None:
    asks = {
        "messages": [
            {"role": "user", "content": "Say hi"},
            {"role": "assistant", "content": OPEN + "0" * 50},
        ],
        "continue_final_message": True,
        "loop_breaker": False,
        "max_tokens": 600,
        "ignore_eos": True,
    }
    reply = whole(service, stream=False, **asks, reasoning_effort="minimal")
    assert usage_of(reply) == (600, 512)
    assert usage_of(whole(service, stream=False, **asks, reasoning_effort="low")) == (600, 600)


@pytest.mark.parametrize(
    ("asks", "param"),
    [
        ({"thinking_token_budget": -2}, "thinking_token_budget"),
        ({"thinking_budget": "9"}, "thinking_budget"),
        ({"reasoning": {"max_tokens": 1.5}}, "reasoning.max_tokens"),
        ({"reasoning_effort": "lots"}, "reasoning_effort"),
        ({"reasoning": {"effort": "lots"}}, "reasoning.effort"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"chat_template_kwargs": {"budget": 9}}, "chat_template_kwargs"),
        ({"thinking_budget": 9, "thinking_token_budget": 8}, "thinking_budget"),
        ({"thinking_budget": 9, "reasoning_effort": "none"}, "reasoning_effort"),
        ({"answer_reserve": 16}, "answer_reserve"),
    ],
    ids=str,
)
def test_h87_what_is_not_valid_is_refused_by_name(
    service: Service, asks: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        error = error_of(post(service, asked(STRAWBERRY, stream=stream, **asks)), 400)
        assert error["param"] == param


def test_h88_a_budget_of_nothing_is_no_effort(service: Service) -> None:
    nothing = post(service, asked(STRAWBERRY, thinking_budget=0)).json()
    none = post(service, asked(STRAWBERRY, reasoning_effort="none")).json()
    assert nothing["choices"] == none["choices"]
    assert nothing["choices"][0]["message"]["content"]
    for reply in (nothing, none):
        assert usage_of(reply)[1] == 0


@pytest.mark.parametrize("format", ["think_tags", "split", "hidden"])
def test_h89_a_budget_holds_with_n_seed_stream_and_logprobs(service: Service, format: str) -> None:
    asks: dict[str, Any] = {
        "thinking_budget": 11,
        "reasoning_format": format,
        "n": 3,
        "seed": 5,
        "temperature": 1.0,
    }
    reply = whole(service, stream=False, logprobs=True, top_logprobs=2, **asks)
    again = whole(service, stream=True, logprobs=True, top_logprobs=2, **asks)
    assert usage_of(reply) == usage_of(again)
    for one, other in zip(reply["choices"], again["choices"], strict=True):
        assert one["token_ids"] == other["token_ids"]
        assert one["message"]["content"] == other["message"]["content"]
        data = b"".join(bytes(entry["bytes"]) for entry in one["logprobs"]["content"])
        assert data.decode() == one["message"]["content"]
        assert all(entry["logprob"] <= 0 for entry in one["logprobs"]["content"])
    if format != "hidden":
        assert all(choice["token_ids"].index(END) <= 11 for choice in reply["choices"])


def test_h90_a_budget_never_fires_in_the_answer(service: Service) -> None:
    thoughts = choice_of(service, return_token_ids=True)["token_ids"].index(END)
    for budget in (thoughts + 1, thoughts + 5):
        assert choice_of(service, thinking_budget=budget) == choice_of(service)
    exact = choice_of(service, thinking_budget=thoughts)
    assert exact["message"] == choice_of(service)["message"]


def test_h90_a_second_open_tag_in_the_answer_is_text(service: Service) -> None:
    begun = f"{THINK_START}\nhm\n{THINK_END}\n\n{THINK_START}\n"
    reply = whole(
        service,
        stream=False,
        messages=[
            {"role": "user", "content": STRAWBERRY},
            {"role": "assistant", "content": begun},
        ],
        continue_final_message=True,
        thinking_budget=2,
        ignore_eos=True,
        max_tokens=30,
        **SPLIT,
    )
    (choice,) = reply["choices"]
    assert usage_of(reply) == (30, 0)
    assert choice["message"]["reasoning"] == ""
    assert not choice["reasoning_truncated"]


@pytest.mark.parametrize("tag", [TOKENIZER.think_start_id, END])
def test_h90_tags_that_the_answer_is_made_of_are_text(service: Service, tag: int) -> None:
    """A bias lets the model say nothing but one tag."""
    asks = {"logit_bias": {str(tag): 100}, "thinking_budget": 5, "max_tokens": 30}
    reply = whole(service, stream=False, **asks, **SPLIT)
    (choice,) = reply["choices"]
    thoughts = 0 if tag == END else 5
    assert usage_of(reply) == (30, thoughts)
    assert choice["message"]["reasoning"] == TOKENIZER.decode([tag] * thoughts)
    answer = choice["token_ids"][thoughts + 1 :]
    assert set(answer[len(CLOSING) - 1 :]) == {tag}
    assert choice["message"]["content"] == TOKENIZER.decode(answer).lstrip("\n")


def test_h91_one_word_over_and_over_is_a_circle(service: Service) -> None:
    (word,) = TOKENIZER.encode_content(" count")
    asks = {"logit_bias": {str(word): 100}, "max_tokens": 300}
    reply = whole(service, stream=False, **asks)
    (choice,) = reply["choices"]
    assert choice["reasoning_stop"] == "loop"
    completion, reasoning = usage_of(reply)
    assert completion == 300
    assert reasoning == choice["token_ids"].index(END) < 200
    assert choice["token_ids"].count(END) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_h91_thoughts_that_go_round_in_a_circle_are_closed(service: Service, stream: bool) -> None:
    circling: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": "Say hi"},
            {"role": "assistant", "content": OPEN + "0" * 50},
        ],
        "continue_final_message": True,
        "max_tokens": 400,
        **SPLIT,
    }
    reply = whole(service, stream=stream, **circling)
    (choice,) = reply["choices"]
    assert (choice["reasoning_truncated"], choice["reasoning_stop"]) == (True, "loop")
    assert usage_of(reply)[1] < 200
    assert choice["message"]["content"]
    (off,) = whole(service, stream=stream, **circling, loop_breaker=False)["choices"]
    assert (off["reasoning_truncated"], off["reasoning_stop"]) == (False, None)
    assert off["message"]["content"] == ""


@pytest.mark.parametrize("max_tokens", [4, 20, 40, 64])
def test_h92_a_reserve_asked_for_yields_an_answer(service: Service, max_tokens: int) -> None:
    asks = {"messages": [{"role": "user", "content": LONG}], "max_tokens": max_tokens, **SPLIT}
    reserved = choice_of(service, **asks, answer_reserve=True)
    assert reserved["message"]["content"]
    assert (reserved["reasoning_truncated"], reserved["reasoning_stop"]) == (True, "budget")
    unreserved = choice_of(service, **asks)
    assert unreserved["message"]["content"] == ""
    assert unreserved["finish_reason"] == "length"
    assert not unreserved["reasoning_truncated"]


def test_h92_a_key_may_ask_for_the_reserve_and_for_split_thoughts(service: Service) -> None:
    options = ("--reasoning-format", "split", "--answer-reserve")
    key = service.cli("keys", "create", "--tenant", "defaults", *options)["secret"]
    body = asked(LONG, max_tokens=40)
    (choice,) = post(service, body, key=key).json()["choices"]
    assert choice["message"]["reasoning"]
    assert choice["message"]["content"]
    assert choice["reasoning_truncated"]
    refused = body | {"answer_reserve": False, "reasoning_format": "think_tags"}
    (own,) = post(service, refused, key=key).json()["choices"]
    assert own["message"] == post(service, body).json()["choices"][0]["message"]
    tight = asked(LONG, max_tokens=3)
    tails = [
        post(service, tight, path="/tokenize", key=one).json()["tokens"][-2:] for one in (key, None)
    ]
    assert tails[0] == TOKENIZER.encode(f"{THINK_END}\n\n")
    assert tails[1] == TOKENIZER.encode(f"{THINK_START}\n")


@pytest.mark.parametrize(
    "hidden",
    [
        {"include_reasoning": False},
        {"reasoning": {"exclude": True}},
        {"reasoning_format": "hidden"},
    ],
    ids=str,
)
@pytest.mark.parametrize("more", [{}, {"thinking_budget": 12}, {"max_tokens": 20}], ids=str)
def test_h93_hidden_thoughts_leak_nowhere_and_count(
    service: Service, hidden: dict[str, Any], more: dict[str, Any]
) -> None:
    body = asked(STRAWBERRY, logprobs=True, return_token_ids=True, **more)
    shown = post(service, body).json()
    reply = post(service, body | hidden).json()
    assert usage_of(reply) == usage_of(shown)
    ids = shown["choices"][0]["token_ids"]
    thoughts = ids[: ids.index(END)] if END in ids else ids
    (choice,) = reply["choices"]
    assert choice["token_ids"] == ids[len(thoughts) + 1 :]
    told = "".join(entry["token"] for entry in choice["logprobs"]["content"])
    assert told == choice["message"]["content"]
    assert "reasoning" not in choice["message"]
    for raw in (json.dumps(reply), json.dumps(chunks(service, body | hidden))):
        assert "Let me" not in raw
        assert "count the" not in raw


ASKS: list[dict[str, Any]] = [
    *({"thinking_token_budget": budget} for budget in (-1, 0, 1, 2, 3, 5, 8, 13, 21, 34, 39, 40)),
    *({"reasoning_effort": effort} for effort in ("none", "minimal", "low", "high", "max")),
    *({"answer_reserve": True, "max_tokens": most} for most in (1, 2, 3, 8, 24, 48)),
    {"thinking_budget": 10, "max_tokens": 11},
    {"thinking_budget": 10, "min_tokens": 50, "max_tokens": 80},
]
FORMATS = ("think_tags", "split", "hidden")
GRID = [
    (asks, format, stream, n)
    for asks in ASKS
    for format in FORMATS
    for stream in (False, True)
    for n in (1, 2)
]


@pytest.mark.parametrize("stream", [False, True])
def test_h_an_end_of_sequence_among_the_thoughts_ends_them_without_an_answer(
    service: Service, stream: bool
) -> None:
    ended: dict[str, Any] = {"logit_bias": {str(TOKENIZER.eos_id): 100}, "min_tokens": 5}
    thoughts = TOKENIZER.decode(choice_of(service, return_token_ids=True)["token_ids"][:5])
    for format, content, reasoning in (
        ("think_tags", OPEN + thoughts, ""),
        ("split", "", thoughts),
        ("hidden", "", ""),
    ):
        reply = whole(service, stream=stream, reasoning_format=format, **ended)
        (choice,) = reply["choices"]
        assert choice["message"].get("content", "") == content
        for name in ("reasoning", "reasoning_content"):
            assert choice["message"].get(name, "") == reasoning
        assert (choice["finish_reason"], choice["reasoning_truncated"]) == ("stop", False)
        assert usage_of(reply) == (6, 6)


def test_h_an_answer_with_a_form_comes_even_so(service: Service) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a", "b"]}}}
    bias = {str(TOKENIZER.eos_id): 100}
    choice = choice_of(service, response_format=form, logit_bias=bias)
    assert json.loads(choice["message"]["content"]) in ("a", "b")
    assert choice["finish_reason"] == "stop"


def test_h_the_sum_of_tokens_is_right_in_every_case_of_the_grid(service: Service) -> None:
    assert len(GRID) == 300

    def counted(case: tuple[dict[str, Any], str, bool, int]) -> tuple[int, int]:
        asks, format, stream, n = case
        options = {"max_tokens": 70, **asks, "reasoning_format": format, "n": n, "seed": 3}
        reply = whole(service, stream=stream, temperature=0.8, **options)
        completion, reasoning = usage_of(reply)
        if format != "hidden":
            ids = [choice["token_ids"] for choice in reply["choices"]]
            thinks = asks.get("thinking_token_budget") != 0 and "none" not in asks.values()
            thinks = thinks and asks.get("max_tokens") not in (1, 2, 3)
            assert completion == sum(map(len, ids))
            thoughts = [one.index(END) if END in one else len(one) for one in ids if thinks]
            assert reasoning == sum(thoughts), (case, ids)
        return completion, reasoning

    with ThreadPoolExecutor(16) as pool:
        counts = dict(zip(map(str, GRID), pool.map(counted, GRID), strict=True))
    for asks, format, stream, n in GRID:
        assert counts[str((asks, format, stream, n))] == counts[str((asks, "think_tags", False, n))]
