"""Checklist E58, E60, E61: past thoughts, continued turns, prompts that close the thoughts."""

from typing import Any

import openai
import pytest

from cluster.text.tokenizer import ASSISTANT, BOS, EOS, THINK_END, THINK_START, USER
from tests.e2e.conformance.thoughts import SPLIT, choice_of, rendered, usage_of, whole
from tests.e2e.conformance.wire import asked, chunks, error_of, post, text_of
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e

QUESTION = {"role": "user", "content": "How many r's are in the word 'strawberry'?"}
ASKED = f"{BOS}{USER}{QUESTION['content']}{ASSISTANT}"
OPEN = f"{THINK_START}\nLet me count the letter r.\n1: s 0\n2: t 0\n3: r 1\n4: a 1"
CLOSED = f"{THINK_START}\nI counted.\n{THINK_END}\n\nThere are 3"
CONTINUED: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}


def said(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


@pytest.mark.parametrize(
    "past",
    [
        said("<think>\nxylophone\n</think>\n\nThree."),
        said("\n\nThree.", reasoning_content="xylophone"),
        said("\n\nThree.", reasoning="xylophone"),
        said("<think>\nxylophone"),
        said("xylophone</think>\n\nThree."),
    ],
    ids=str,
)
def test_e58_past_thoughts_are_not_in_the_prompt(service: Service, past: dict[str, Any]) -> None:
    prompt = rendered(service, [QUESTION, past, QUESTION])
    assert "xylophone" not in prompt
    kept = "\n\nThree." if "Three" in past["content"] else ""
    assert prompt == f"{ASKED}{kept}{EOS}{ASKED.removeprefix(BOS)}{THINK_START}\n"


@pytest.mark.parametrize(
    ("begun", "prompt"),
    [
        (said("There are"), "There are"),
        (said(OPEN), OPEN),
        (said("", reasoning_content="Let me"), f"{THINK_START}\nLet me"),
        (said(CLOSED), CLOSED),
        (said("There are 3", reasoning="I counted."), CLOSED),
    ],
    ids=str,
)
def test_e60_a_continued_turn_is_not_ended(
    service: Service, begun: dict[str, Any], prompt: str
) -> None:
    for options in (CONTINUED, {"continue_final_message": True}):
        assert rendered(service, [QUESTION, begun], **options) == ASKED + prompt


def test_e60_what_is_added_to_an_answer_is_content(client: openai.OpenAI, service: Service) -> None:
    for begun in (said("There are"), said(CLOSED)):
        body = asked(messages=[QUESTION, begun])
        reply = client.chat.completions.create(**body, extra_body={**CONTINUED, **SPLIT})
        assert reply.choices[0].message.content
        extra = reply.choices[0].message.model_extra or {}
        assert extra["reasoning"] == extra["reasoning_content"] == ""
        details = reply.usage and reply.usage.completion_tokens_details
        assert details is not None
        assert details.reasoning_tokens == 0
        tagged = choice_of(service, messages=[QUESTION, begun], **CONTINUED)["message"]
        assert tagged["content"] == reply.choices[0].message.content


def test_e60_what_is_added_to_open_thoughts_is_reasoning_until_they_end(service: Service) -> None:
    asks = {"messages": [QUESTION, said(OPEN)], **CONTINUED}
    split = choice_of(service, **asks, **SPLIT)["message"]
    assert split["reasoning"].startswith("\n5: w 1\n")
    assert split["content"].startswith("There ")
    tagged = choice_of(service, **asks)["message"]["content"]
    assert tagged == f"{split['reasoning']}\n{THINK_END}\n\n{split['content']}"
    assert text_of(chunks(service, asked(**asks))) == tagged
    hidden = choice_of(service, **asks, include_reasoning=False)["message"]
    assert hidden["content"] == split["content"]


def test_e60_begun_and_added_are_the_whole_that_is_said_at_once(service: Service) -> None:
    added = choice_of(service, messages=[QUESTION, said(OPEN)], **CONTINUED)["message"]["content"]
    assert OPEN + added == choice_of(service)["message"]["content"]


def test_e60_only_a_turn_of_the_assistant_can_be_continued(service: Service) -> None:
    error = error_of(post(service, asked(**CONTINUED)), 400)
    assert error["param"] == "continue_final_message"
    both = CONTINUED | {"add_generation_prompt": True}
    body = asked(messages=[QUESTION, said("There")], **both)
    assert error_of(post(service, body), 400)["param"] == "add_generation_prompt"


def test_e60_without_a_generation_prompt_the_prompt_ends_with_the_last_message(
    service: Service,
) -> None:
    bare = {"add_generation_prompt": False}
    assert rendered(service, [QUESTION], **bare) == ASKED.removesuffix(ASSISTANT)
    assert rendered(service, [QUESTION, said("Three.")], **bare) == f"{ASKED}Three.{EOS}"
    assert "think" not in choice_of(service, **bare, max_tokens=8)["message"]["content"]


NO_THOUGHTS: list[dict[str, Any]] = [
    {"reasoning_effort": "none"},
    {"thinking_budget": 0},
    {"reasoning": {"enabled": False}},
    {"thinking": {"type": "disabled"}},
    {"chat_template_kwargs": {"thinking": False}},
]


@pytest.mark.parametrize("asks", NO_THOUGHTS, ids=str)
def test_e61_no_thoughts_are_a_closed_think_block_in_the_prompt(
    service: Service, asks: dict[str, Any]
) -> None:
    prompt = rendered(service, [QUESTION], **asks)
    assert prompt == f"{ASKED}{THINK_START}\n\n{THINK_END}\n\n"
    for stream in (False, True):
        reply = whole(service, stream=stream, **asks, **SPLIT)
        (choice,) = reply["choices"]
        assert choice["message"]["content"]
        assert not choice["message"].get("reasoning")
        assert usage_of(reply)[1] == 0
    assert "think>" not in choice_of(service, **asks)["message"]["content"]
