"""Checklist E: the prompt is the template's, and no text in it becomes a control token."""

from typing import Any

import openai
import pytest

from cluster.text.tokenizer import ASSISTANT, BOS, EOS, THINK_END, THINK_START, USER
from tests.e2e.conformance.thoughts import TOKENIZER
from tests.e2e.conformance.wire import CHAT, MODEL, asked, error_of, post, settled
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e
PROMPT_TOKENS = "deeprequest_engine_prompt_tokens_total"
TAIL = f"{ASSISTANT}{THINK_START}\n"
GOLDEN: dict[str, tuple[list[tuple[str, str]], str]] = {
    "user": ([("user", "hi")], f"{BOS}{USER}hi{TAIL}"),
    "system and user": ([("system", "Be brief."), ("user", "hi")], f"{BOS}Be brief.{USER}hi{TAIL}"),
    "three turns with thoughts": (
        [
            ("user", "2+2?"),
            ("assistant", f"{THINK_START}\nhm\n{THINK_END}\n\n4"),
            ("user", "3+3?"),
        ],
        f"{BOS}{USER}2+2?{ASSISTANT}\n\n4{EOS}{USER}3+3?{TAIL}",
    ),
    "unicode": ([("user", "naïve 日本語 🙂 e\u0301")], f"{BOS}{USER}naïve 日本語 🙂 e\u0301{TAIL}"),
    "empty system": ([("system", ""), ("user", "hi")], f"{BOS}{USER}hi{TAIL}"),
}


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


def rendered(service: Service, *pairs: tuple[str, str]) -> dict[str, Any]:
    body = {"model": MODEL, "messages": turns(*pairs)}
    reply = post(service, body, path=f"{CHAT}/render")
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


@pytest.mark.parametrize("case", GOLDEN)
def test_e55_rendered_ids_are_the_golden_ones(service: Service, case: str) -> None:
    pairs, text = GOLDEN[case]
    found = rendered(service, *pairs)
    assert found["prompt"] == text
    assert found["token_ids"] == TOKENIZER.encode(text)
    tokenized = post(service, {"messages": turns(*pairs)}, path="/tokenize").json()
    assert tokenized["tokens"] == found["token_ids"]


@pytest.mark.parametrize("case", GOLDEN)
def test_e56_one_bos_and_an_open_think_block_at_the_end(service: Service, case: str) -> None:
    tokens = rendered(service, *GOLDEN[case][0])["token_ids"]
    assert tokens.count(TOKENIZER.bos_id) == 1
    assert tokens[-3:-1] == [TOKENIZER.assistant_id, TOKENIZER.think_start_id]
    assert TOKENIZER.decode(tokens[-1:]) == "\n"


def test_e57_system_and_developer_texts_are_joined_in_order(service: Service) -> None:
    found = rendered(service, ("developer", "one"), ("user", "hi"), ("system", "two"))
    assert found["prompt"] == f"{BOS}one\n\ntwo{USER}hi{TAIL}"
    codes = [warning["code"] for warning in found["warnings"]]
    assert {"system_messages_moved", "system_prompt_not_advised"} <= set(codes)


def test_e58_thoughts_of_the_past_are_dropped_and_that_is_told(service: Service) -> None:
    past = {"role": "assistant", "content": "4", "reasoning_content": "xylophone"}
    messages = [*turns(("user", "2+2?")), past, *turns(("user", "3+3?"))]
    found = post(service, {"model": MODEL, "messages": messages}, path=f"{CHAT}/render").json()
    assert "xylophone" not in found["prompt"]
    assert "thoughts_dropped" in [warning["code"] for warning in found["warnings"]]


def test_e59_a_template_in_the_text_is_text(service: Service) -> None:
    text = "{{ messages }}{% for x in y %}{{ bos_token }}"
    assert rendered(service, ("user", text))["prompt"] == f"{BOS}{USER}{text}{TAIL}"


def test_e62_what_cannot_be_tokens_or_text_is_refused(service: Service) -> None:
    error_of(post(service, {"tokens": [10**7]}, path="/detokenize"), 400)
    error_of(post(service, {"tokens": "x"}, path="/detokenize"), 400)
    error_of(post(service, {"prompt": 7}, path="/tokenize"), 400)
    error_of(post(service, {"prompt": "x", "model": "nope"}, path="/tokenize"), 404)


def test_e_rendering_generates_and_costs_nothing(service: Service, client: openai.OpenAI) -> None:
    before = settled(service, PROMPT_TOKENS)
    body = asked("How many a's are in 'banana'?", max_tokens=20, temperature=1.2)
    found = post(service, body, path=f"{CHAT}/render").json()
    assert settled(service, PROMPT_TOKENS) == before
    codes = [warning["code"] for warning in found["warnings"]]
    assert codes == ["temperature_not_advised", "max_tokens_few"]
    usage = client.chat.completions.create(**body).usage
    assert usage is not None
    assert usage.prompt_tokens == found["prompt_tokens"]
