"""Checklist D39-D42: where the thoughts are, and what they cost."""

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
)
from tests.e2e.conformance.wire import MODEL, asked, chunks, post, text_of
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e


def test_d39_by_default_thoughts_stand_in_tags_before_the_answer(client: openai.OpenAI) -> None:
    content = client.chat.completions.create(**asked(STRAWBERRY)).choices[0].message.content
    assert content is not None
    assert content.startswith(f"{THINK_START}\n")
    assert content.count(THINK_END) == 1
    assert content.endswith("There are 3 r's in the word 'strawberry'.")


@pytest.mark.parametrize("alias", [SPLIT, {"separate_reasoning": True}], ids=str)
def test_d40_split_thoughts_have_two_names_and_no_tags(
    service: Service, client: openai.OpenAI, alias: dict[str, Any]
) -> None:
    reply = client.chat.completions.create(**asked(STRAWBERRY), extra_body=alias)
    message = reply.choices[0].message
    extra = message.model_extra or {}
    assert extra["reasoning"] == extra["reasoning_content"]
    assert "think>" not in f"{extra['reasoning']}{message.content}"
    tagged = choice_of(service)["message"]
    split = f"{THINK_START}\n{extra['reasoning']}\n{THINK_END}\n\n{message.content}"
    assert tagged["content"] == split
    assert set(tagged) == {"role", "content", "refusal"}


def test_d40_split_deltas_have_two_names_too(service: Service) -> None:
    found = chunks(service, asked(STRAWBERRY, **SPLIT))
    message = choice_of(service, **SPLIT)["message"]
    for name in ("content", "reasoning_content", "reasoning"):
        assert text_of(found, name) == message[name]
    for chunk in found:
        delta = chunk["choices"][0]["delta"]
        assert not (delta.get("content") and delta.get("reasoning"))


def test_d40_a_closing_tag_in_plain_words_splits_nothing(service: Service) -> None:
    begun = {"role": "assistant", "content": f"{THINK_START}\nthe tag is "}
    spelt = TOKENIZER.encode_content(THINK_END)
    assert END not in spelt
    question = {"role": "user", "content": f"Repeat the word '{THINK_END}'"}
    choice = choice_of(
        service, messages=[question, begun], continue_final_message=True, return_token_ids=True
    )
    ids = choice["token_ids"]
    thoughts = ids[: ids.index(END)] if END in ids else ids
    split = choice_of(service, messages=[question, begun], continue_final_message=True, **SPLIT)
    reasoning = TOKENIZER.shown_bytes(thoughts).decode()
    assert split["message"]["reasoning"] in (reasoning, reasoning.removesuffix("\n"))


def test_d41_thoughts_cut_off_are_all_there_is(service: Service) -> None:
    split = choice_of(service, max_tokens=12, **SPLIT)
    assert split["finish_reason"] == "length"
    assert split["message"]["content"] == ""
    assert split["message"]["reasoning"]
    assert not split["reasoning_truncated"]
    tagged = choice_of(service, max_tokens=12)
    assert tagged["message"]["content"] == f"{THINK_START}\n{split['message']['reasoning']}"
    found = chunks(service, asked(STRAWBERRY, max_tokens=12, **SPLIT))
    assert text_of(found, "reasoning") == split["message"]["reasoning"]
    assert text_of(found) == ""


@pytest.mark.parametrize("max_tokens", [1, 12, 38, 39, 40, 41, 200])
def test_d42_thoughts_and_closing_tag_and_answer_are_all_tokens(
    service: Service, max_tokens: int
) -> None:
    body = asked(STRAWBERRY, max_tokens=max_tokens, return_token_ids=True)
    reply = post(service, body).json()
    ids = reply["choices"][0]["token_ids"]
    completion, reasoning = usage_of(reply)
    assert completion == len(ids)
    assert reasoning == (ids.index(END) if END in ids else len(ids))
    usage = reply["usage"]
    counted = {"model": MODEL, "messages": body["messages"]}
    assert usage["prompt_tokens"] == post(service, counted, path="/tokenize").json()["count"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + completion
