"""Checklist D, items 43 to 45, 47 to 49, 51 to 54: what sampling parameters do to an answer."""

import itertools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.conformance.wire import MODEL, asked, chunks, post, text_of
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e

COUNT = "Count from 1 to 20"
END = "</think>"


def answer(service: Service, content: str = COUNT, **fields: Any) -> dict[str, Any]:
    reply = post(service, asked(content, **fields))
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def text(service: Service, content: str = COUNT, **fields: Any) -> str:
    choice = answer(service, content, **fields)["choices"][0]
    return str(choice["message"]["content"])


def ids_of(service: Service, words: str) -> list[int]:
    """Token ids of a text, without the beginning-of-sequence token."""
    reply = post(service, {"model": MODEL, "prompt": words}, path="/tokenize").json()
    return list(reply["tokens"][1:])


def test_d43_the_same_prompt_twice_is_cached_and_answered_alike(service: Service) -> None:
    content = "How many s's are in the word 'mississippi'? " * 8
    first, second = answer(service, content), answer(service, content)
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert first["choices"] == second["choices"]


def test_d44_the_fingerprint_is_there_and_stays(service: Service) -> None:
    prints = {answer(service, max_tokens=2)["system_fingerprint"] for _ in range(3)}
    (print_,) = prints
    assert print_.startswith("fp_")
    streamed = chunks(service, asked(max_tokens=2))
    assert {chunk["system_fingerprint"] for chunk in streamed} == prints


def test_d45_greedy_and_seeded_answers_repeat_and_neighbours_change_nothing(
    service: Service,
) -> None:
    wild: dict[str, Any] = {"temperature": 1.8, "top_p": 1, "max_tokens": 40}
    assert text(service) == text(service)
    alone = text(service, **wild, seed=7)
    assert alone == text(service, **wild, seed=7)
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda seed: text(service, **wild, seed=seed), range(32)))
    assert together[7] == alone
    assert len(set(together)) > 16


def test_d47_eos_ends_and_ignore_eos_runs_on(service: Service) -> None:
    ended = answer(service, "How many a's are in the word 'banana'?")
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert ended["usage"]["completion_tokens"] < 150
    ran = answer(service, "How many a's are in the word 'banana'?", ignore_eos=True, max_tokens=150)
    assert ran["choices"][0]["finish_reason"] == "length"
    assert ran["usage"]["completion_tokens"] == 150


def test_d48_min_tokens_hold_and_stop_token_ids_stop(service: Service) -> None:
    longer = answer(service, "hi", min_tokens=120)
    assert longer["usage"]["completion_tokens"] >= 120
    (number,) = ids_of(service, " 13")[-1:]
    told = answer(service, return_token_ids=True)
    ids = told["choices"][0]["token_ids"]
    stop_id = ids[len(ids) // 2]
    stopped = answer(service, stop_token_ids=[stop_id, number], return_token_ids=True)
    choice = stopped["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] in (stop_id, number)
    assert choice["token_ids"] == ids[: len(choice["token_ids"])]
    assert choice["token_ids"][-1] == choice["stop_reason"]


def test_d49_a_stop_string_across_tokens_is_left_out(service: Service) -> None:
    whole = text(service)
    stop = " 7 8 9"
    assert stop in whole
    choice = answer(service, stop=stop)["choices"][0]
    assert choice["message"]["content"] == whole.split(stop)[0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    streamed = chunks(service, asked(COUNT, stop=[stop, "never"]))
    assert text_of(streamed) == whole.split(stop)[0]
    assert streamed[-1]["choices"][0]["stop_reason"] == stop


def test_d49_a_stop_string_that_only_the_thoughts_have_does_not_stop(service: Service) -> None:
    content = "How many a's are in the word 'banana'?"
    whole = text(service, content)
    thoughts, said = whole.split(END)
    assert "count the letter" in thoughts
    assert "count the letter" not in said
    choice = answer(service, content, stop="count the letter")["choices"][0]
    assert choice["message"]["content"] == whole
    assert choice["stop_reason"] is None
    asked_to = answer(service, content, stop="count the letter", stop_scope="all")["choices"][0]
    assert asked_to["message"]["content"] == whole.split("count the letter")[0]
    assert asked_to["stop_reason"] == "count the letter"


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_d51_a_bias_of_100_forces_and_one_of_minus_100_bans(
    service: Service, temperature: float
) -> None:
    (forced,) = ids_of(service, " word")
    sampling: dict[str, Any] = {"temperature": temperature, "seed": 1}
    only = text(service, logit_bias={str(forced): 100}, max_tokens=8, **sampling)
    assert only == "<think>\n" + " word" * 8
    ids = set(answer(service, return_token_ids=True, **sampling)["choices"][0]["token_ids"])
    banned = sorted(ids)[: len(ids) // 2]
    bias = {str(token): -100 for token in banned}
    without = answer(service, logit_bias=bias, return_token_ids=True, **sampling)["choices"][0]
    assert not set(without["token_ids"]) & set(banned)


def test_d51_a_soft_bias_only_leans(service: Service) -> None:
    (token,) = ids_of(service, " word")
    request: dict[str, Any] = {
        "temperature": 1.5,
        "top_p": 1,
        "max_tokens": 60,
        "seed": 3,
        "ignore_eos": True,
    }
    counts = [
        text(service, logit_bias={str(token): bias}, **request).count(" word")
        for bias in (-100, 0, 18)
    ]
    assert counts[0] == 0
    assert counts[1] < counts[2] < 60


def test_d51_no_bias_and_no_penalty_breaks_a_grammar(service: Service) -> None:
    brace, *_ = ids_of(service, "{")
    asks: dict[str, Any] = {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "array", "items": {"enum": [1, 2]}}},
        },
        "max_tokens": 300,
    }
    for changed in (
        {"logit_bias": {str(brace): 100}, "thinking_budget": 5},
        {"frequency_penalty": 2, "presence_penalty": 2},
    ):
        choice = answer(service, **asks, **changed)["choices"][0]
        content = choice["message"]["content"]
        assert re.match(r"\s*\[", content), content
        if choice["finish_reason"] == "stop":
            assert set(json.loads(content)) <= {1, 2}


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_d52_penalties_change_a_looping_answer_but_not_the_thoughts(
    service: Service, penalty: str
) -> None:
    looping: dict[str, Any] = {"ignore_eos": True, "max_tokens": 150}
    plain = text(service, **looping)
    penalised = text(service, **{**looping, penalty: 2})
    assert penalised.split(END)[0] == plain.split(END)[0]
    assert penalised.split(END)[1] != plain.split(END)[1]
    assert repetition(penalised) < repetition(plain)


def repetition(content: str) -> float:
    """The share of word pairs that came before."""
    words = re.findall(r"\w+", content.split(END)[1])
    pairs = list(itertools.pairwise(words))
    return 1 - len(set(pairs)) / len(pairs)


def test_d52_penalties_reach_the_thoughts_when_asked_to(service: Service) -> None:
    content = "How many a's are in the word 'bananabanana'?"
    scoped: dict[str, Any] = {"frequency_penalty": 2, "max_tokens": 60}
    assert text(service, content, **scoped) == text(service, content, max_tokens=60)
    everywhere = text(service, content, **scoped, penalty_scope="all")
    assert everywhere.split(END)[0] != text(service, content, max_tokens=60).split(END)[0]


def test_d52_a_repetition_penalty_works_and_streams_alike(service: Service) -> None:
    request: dict[str, Any] = {"repetition_penalty": 1.5, "ignore_eos": True, "max_tokens": 150}
    whole = text(service, **request)
    assert whole != text(service, ignore_eos=True, max_tokens=150)
    assert text_of(chunks(service, asked(COUNT, **request))) == whole


def test_d53_top_k_of_one_is_greedy(service: Service) -> None:
    assert text(service, temperature=2, top_k=1, seed=5) == text(service)


def test_d54_metadata_and_service_tier_are_echoed(service: Service, client: openai.OpenAI) -> None:
    reply = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=5,
        metadata={"run": "7"},
        service_tier="priority",
        store=True,
        verbosity="low",
        safety_identifier="someone@example.org",
    )
    parsed = reply.parse()
    assert parsed.service_tier == "priority"
    assert reply.headers["x-deeprequest-class"] == "interactive"
    assert parsed.metadata == {"run": "7"}
    assert reply.headers["x-deeprequest-ignored"] == "store, verbosity"
    first, *rest = chunks(service, asked(metadata={"run": "7"}, service_tier="auto", max_tokens=2))
    assert (first["metadata"], first["service_tier"]) == ({"run": "7"}, "default")
    assert not any("metadata" in chunk for chunk in rest)
    assert "metadata" not in answer(service, max_tokens=2)


def test_every_event_tells_the_counts_so_far_when_asked_to(service: Service) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = chunks(service, asked(COUNT, max_tokens=20, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in found]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == 20
    assert found[-1]["choices"] == []
    assert {chunk["usage"]["prompt_tokens"] for chunk in found} == {
        found[-1]["usage"]["prompt_tokens"]
    }
