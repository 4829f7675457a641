"""Answers that call: whole and streamed, the same however the deltas were cut."""

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion as SdkCompletion
from openai.types.chat import ChatCompletionChunk

from cluster.request import FinishReason, RequestOutput, Usage
from cluster.text.tool_calls import written_call
from serve_app.openai.chat import ChatCompletion, ChatStream
from serve_app.openai.chat_choice import ChatStyle
from serve_app.openai.response import ResponseHead

HEAD = ResponseHead("chatcmpl-1", 1, "m", "fp")
STYLE = ChatStyle("split", True, calls=True)
PARIS = written_call("weather", '{"city": "Paris \\"<tool_call>\\""}')
NOW = written_call("now", "{}")
CALLS = [("weather", '{"city": "Paris \\"<tool_call>\\""}'), ("now", "{}")]


def outputs(answer: str, cut: int, reason: FinishReason = FinishReason.STOP) -> list[RequestOutput]:
    """A thought, then the answer in pieces of `cut` characters."""
    pieces = [answer[place : place + cut] for place in range(0, len(answer), cut)]
    deltas = [RequestOutput("r", reasoning="hm\n"), RequestOutput("r", reasoning_ended=True)]
    deltas += [RequestOutput("r", content=piece, token_ids=[5]) for piece in pieces]
    deltas.append(RequestOutput("r", finish_reason=reason, usage=Usage(3, 9, 0, 1)))
    return deltas


def whole(deltas: list[RequestOutput], style: ChatStyle = STYLE) -> dict[str, Any]:
    completion = ChatCompletion(HEAD, style)
    for delta in deltas:
        completion.push(0, delta)
    body = completion.body(Usage(3, 9, 0, 1))
    SdkCompletion.model_validate_json(body, strict=True)
    choice: dict[str, Any] = json.loads(body)["choices"][0]
    return choice


def streamed(deltas: list[RequestOutput], style: ChatStyle = STYLE) -> list[dict[str, Any]]:
    stream = ChatStream(HEAD, style)
    written = stream.first() + b"".join(stream.push(0, delta) for delta in deltas)
    events = [line.removeprefix(b"data: ") for line in written.split(b"\n\n") if line]
    for event in events:
        ChatCompletionChunk.model_validate_json(event, strict=True)
    return [json.loads(event)["choices"][0] for event in events]


def joined(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client puts together from a stream."""
    calls: list[dict[str, Any]] = []
    content = ""
    for choice in choices:
        delta = choice["delta"]
        content += delta.get("content") or ""
        for entry in delta.get("tool_calls", []):
            if "id" in entry:
                assert entry["index"] == len(calls)
                calls.append({**entry["function"], "id": entry["id"], "type": entry["type"]})
            else:
                assert entry["index"] == len(calls) - 1
                calls[-1]["arguments"] += entry["function"]["arguments"]
    return {"content": content, "calls": calls, "reason": choices[-1]["finish_reason"]}


@pytest.mark.parametrize("cut", [1, 3, 7, 1000])
@pytest.mark.parametrize("text", ["", "I look. "])
def test_calls_are_told_with_ids_names_and_arguments(text: str, cut: int) -> None:
    deltas = outputs(f"\n\n{text}{PARIS}\n{NOW}", cut)
    choice = whole(deltas)
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == (text.rstrip() or None)
    assert message["reasoning_content"] == "hm"
    told = [
        (one["function"]["name"], one["function"]["arguments"]) for one in message["tool_calls"]
    ]
    assert told == CALLS
    ids = [one["id"] for one in message["tool_calls"]]
    assert len(set(ids)) == 2
    assert all(one.startswith("call_") for one in ids)
    assert {one["type"] for one in message["tool_calls"]} == {"function"}

    put_together = joined(streamed(deltas))
    assert put_together["content"] == text.rstrip()
    assert [(one["name"], one["arguments"]) for one in put_together["calls"]] == CALLS
    assert put_together["reason"] == "tool_calls"
    assert {one["type"] for one in put_together["calls"]} == {"function"}


@pytest.mark.parametrize("cut", [1, 4, 1000])
def test_an_answer_in_text_is_text(cut: int) -> None:
    text = "It is < 20 degrees, <tool "
    choice = whole(outputs(f"\n\n{text}", cut))
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
    assert "tool_calls" not in choice["message"]
    assert joined(streamed(outputs(text, cut))) == {"content": text, "calls": [], "reason": "stop"}


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.STOP])
def test_nobody_is_told_to_make_a_call_that_was_cut(reason: FinishReason) -> None:
    """By max_tokens, or by a stop string among the arguments."""
    for before in ("", NOW):
        deltas = outputs(before + PARIS[:60], 5, reason)
        choice = whole(deltas)
        assert choice["finish_reason"] == reason.value
        assert choice["message"]["tool_calls"][-1]["function"]["name"] == "weather"
        assert joined(streamed(deltas))["reason"] == reason.value


def test_no_event_is_empty_and_each_carries_one_kind_of_thing() -> None:
    *deltas, last = [choice["delta"] for choice in streamed(outputs(f"so {PARIS}", 1))]
    assert last == {}
    for delta in deltas[1:]:
        assert sum(key in delta for key in ("content", "reasoning", "tool_calls")) == 1
        assert all(delta.values())


def test_markers_are_text_where_nothing_may_be_called() -> None:
    style = STYLE._replace(calls=False)
    choice = whole(outputs(PARIS, 9), style)
    assert (choice["message"]["content"], choice["finish_reason"]) == (PARIS, "stop")
