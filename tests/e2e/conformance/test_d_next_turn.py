"""The next turn of a long chat: its history is computed once, and for its own tenant alone."""

import sys
from typing import Any

import pytest

from tests.e2e.conformance.wire import asked, post
from tests.e2e.service import Service

HISTORY_TOKENS = 1_500


def reply(service: Service, messages: list[dict[str, str]], key: str | None = None) -> Any:
    answer = post(service, asked(messages=messages), key=key)
    assert answer.status_code == 200, answer.text
    return answer.json()


def shares(usage: dict[str, Any]) -> tuple[int, int]:
    """(tokens of the prompt, how many of them were found in the cache)."""
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def test_the_second_turn_finds_its_history_in_the_cache_and_another_tenant_nothing(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    question = "How many a's are in the word 'banana'? "
    messages = [{"role": "user", "content": question * (HISTORY_TOKENS // 20)}]
    first = reply(service, messages)
    answer = first["choices"][0]["message"]["content"] or ""
    messages += [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "How many n's?"},
    ]
    prompt, cached = shares(reply(service, messages)["usage"])
    stranger = service.cli("keys", "create", "--tenant", "next-turn")["secret"]
    of_stranger = shares(reply(service, messages, key=stranger)["usage"])
    with capsys.disabled():
        sys.stdout.write(f"\nsecond turn: {cached} of {prompt} prompt tokens from the cache\n")
    assert first["usage"]["prompt_tokens"] >= HISTORY_TOKENS
    assert cached >= 0.95 * prompt
    assert of_stranger == (prompt, 0)
