"""Checklist D, item 50, and H, item 93: logprobs and token ids, whole and streamed."""

import json
import math
from typing import Any

import openai
import pytest

from tests.e2e.conformance.wire import MODEL, asked, chunks, post
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e

FORMATS = ["think_tags", "split", "hidden"]
QUESTIONS = [
    "How many a's are in the word 'banana'?",
    "Say 🍓🍓",
    "Spell the word 'é🍓'.",
    "How many 🍓 are in 'a🍓b🍓'?",
]


def choice_of(service: Service, content: str, **fields: Any) -> dict[str, Any]:
    reply = post(service, asked(content, logprobs=True, **fields))
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    return dict(choice)


def joined(entries: list[dict[str, Any]]) -> str:
    return b"".join(bytes(entry["bytes"]) for entry in entries).decode(errors="replace")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_d50_one_entry_per_token_and_their_bytes_are_the_content(
    service: Service, question: str, format: str
) -> None:
    choice = choice_of(service, question, top_logprobs=20, reasoning_format=format)
    entries = choice["logprobs"]["content"]
    assert entries
    assert joined(entries) == choice["message"]["content"]
    for entry in entries:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        likeliest = entry["top_logprobs"]
        assert sum(math.exp(top["logprob"]) for top in likeliest) <= 1 + 1e-4
        logprobs = [top["logprob"] for top in likeliest]
        assert logprobs == sorted(logprobs, reverse=True)
        assert likeliest[0]["token"] == entry["token"], "the drawn one, as it is greedy"
        assert likeliest[0]["logprob"] == entry["logprob"]


def test_d50_parts_of_an_emoji_give_their_true_bytes(service: Service) -> None:
    entries = choice_of(service, "Say 🍓🍓", top_logprobs=1)["logprobs"]["content"]
    content = joined(entries)
    assert any(ord(character) > 0xFFFF for character in content)
    parts = [entry for entry in entries if max(entry["bytes"]) >= 0xF0]
    assert parts
    for entry in parts:
        assert "\ufffd" not in entry["token"]
        assert entry["token"] == bytes(entry["bytes"]).decode(errors="backslashreplace")


@pytest.mark.parametrize("format", FORMATS)
def test_d50_a_stream_tells_what_the_whole_tells(service: Service, format: str) -> None:
    fields = {"top_logprobs": 2, "reasoning_format": format, "return_token_ids": True}
    fields |= {"temperature": 1.3, "seed": 11}
    whole = choice_of(service, QUESTIONS[3], **fields)
    found = chunks(service, asked(QUESTIONS[3], logprobs=True, **fields))
    choices = [chunk["choices"][0] for chunk in found]
    told = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    entries = [entry for one in told for entry in one["content"]]
    assert joined(entries) == whole["message"]["content"]
    for entry, other in zip(entries, whole["logprobs"]["content"], strict=True):
        assert (entry["token"], entry["bytes"]) == (other["token"], other["bytes"])
        assert entry["logprob"] == pytest.approx(other["logprob"], abs=0.05)
        assert len(entry["top_logprobs"]) == len(other["top_logprobs"])
    ids = [token for choice in choices for token in choice.get("token_ids", [])]
    assert ids == whole["token_ids"]
    shown = ""
    for choice in choices:
        shown += choice["delta"].get("content", "")
        told_so_far = joined((choice["logprobs"] or {"content": []})["content"])
        assert shown.endswith(told_so_far), "entries come with their text"


def test_d50_the_sdk_reads_them(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTIONS[0]}],
        temperature=0,
        max_tokens=200,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert all(len(entry.top_logprobs) == 3 for entry in logprobs.content[2:])
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTIONS[0]}],
        temperature=0,
        max_tokens=200,
        logprobs=True,
        top_logprobs=3,
    ) as stream:
        final = stream.get_final_completion()
    streamed = final.choices[0].logprobs
    assert streamed is not None
    assert streamed.content is not None
    assert [entry.bytes for entry in streamed.content] == [e.bytes for e in logprobs.content]


def test_d50_logprobs_are_the_models_own_under_penalties_and_bias(service: Service) -> None:
    fields: dict[str, Any] = {"top_logprobs": 1, "max_tokens": 1}
    plain = choice_of(service, QUESTIONS[0], **fields)["logprobs"]["content"][-1]
    favourite = post(service, {"model": MODEL, "prompt": plain["token"]}, path="/tokenize").json()[
        "tokens"
    ][1:]
    bias = {str(favourite[0]): -100}
    other = choice_of(service, QUESTIONS[0], logit_bias=bias, **fields)["logprobs"]["content"][-1]
    assert other["token"] != plain["token"]
    (favoured,) = other["top_logprobs"]
    assert favoured["token"] == plain["token"]
    assert favoured["logprob"] == pytest.approx(plain["logprob"], abs=0.05)


def test_d50_logprobs_without_top_name_the_drawn_token_alone(service: Service) -> None:
    for entry in choice_of(service, QUESTIONS[0])["logprobs"]["content"]:
        assert entry["top_logprobs"] == []
    assert post(service, asked(max_tokens=3)).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "hidden",
    [
        {"reasoning_format": "hidden"},
        {"include_reasoning": False},
        {"reasoning": {"exclude": True}},
    ],
    ids=str,
)
def test_h93_hidden_thoughts_leave_no_text_no_ids_and_no_logprobs(
    service: Service, hidden: dict[str, Any], stream: bool
) -> None:
    question = QUESTIONS[0]
    fields: dict[str, Any] = {"top_logprobs": 1, "return_token_ids": True}
    shown = choice_of(service, question, reasoning_format="split", **fields)
    request = asked(question, logprobs=True, **fields, **hidden)
    request["stream_options"] = {"include_usage": True}
    if stream:
        found = chunks(service, request)
        choices = [chunk["choices"][0] for chunk in found[:-1]]
        usage, raw = found[-1]["usage"], json.dumps(choices)
        ids = [token for choice in choices for token in choice.get("token_ids", [])]
    else:
        del request["stream_options"]
        body = post(service, request).json()
        usage, raw = body["usage"], json.dumps(body["choices"])
        ids = body["choices"][0]["token_ids"]
    assert "count the letter" in shown["message"]["reasoning"]
    assert "count" not in raw
    assert "think" not in raw
    assert usage["completion_tokens_details"]["reasoning_tokens"] > 10
    assert ids == shown["token_ids"][-len(ids) :]
    assert 0 < len(ids) < usage["completion_tokens"]
    assert len(ids) == usage["completion_tokens"] - (
        usage["completion_tokens_details"]["reasoning_tokens"] + 1
    )


def test_return_token_ids_tells_prompt_and_output(service: Service) -> None:
    body = post(service, asked(QUESTIONS[0], return_token_ids=True)).json()
    assert len(body["prompt_token_ids"]) == body["usage"]["prompt_tokens"]
    assert len(body["choices"][0]["token_ids"]) == body["usage"]["completion_tokens"]
    first, *rest = chunks(service, asked(QUESTIONS[0], return_token_ids=True))
    assert first["prompt_token_ids"] == body["prompt_token_ids"]
    assert not any("prompt_token_ids" in chunk for chunk in rest)
