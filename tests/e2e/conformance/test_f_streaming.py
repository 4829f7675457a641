"""Checklist F: streams."""

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.conformance.wire import (
    COUNT_TO_150,
    KEEP_ALIVE_S,
    asked,
    chunks,
    counted,
    error_of,
    events_of,
    eventually,
    is_idle,
    opened,
    post,
    stream,
    streaming,
    text_of,
)
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e
COUNT = asked("Count from 1 to 20", max_tokens=120)
SEEDED = asked("Spell the word 'engine'", temperature=1.0, seed=7, max_tokens=80)
EMOJI = "naïve 日本語 🙂👩‍👩‍👧👍🏽 e\u0301"
FILLERS = 16
"""As many as the service runs at a time."""


def test_f63_the_headers_are_those_of_events_and_the_first_comes_early(service: Service) -> None:
    with streaming(service, COUNT_TO_150) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-cache"
        assert reply.headers["x-accel-buffering"] == "no"
        assert reply.headers["server-timing"].startswith("queue;dur=")
        first = next(line for line in reply.iter_lines() if line.startswith("data: "))
    assert events_of([first])[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("n", [1, 3])
def test_f64_each_choice_begins_with_its_role(service: Service, n: int) -> None:
    seen: dict[int, Any] = {}
    for choice in (
        choice for chunk in chunks(service, {**COUNT, "n": n}) for choice in chunk["choices"]
    ):
        seen.setdefault(choice["index"], choice["delta"])
    assert seen == {index: {"role": "assistant", "content": ""} for index in range(n)}


def test_f65_all_chunks_share_their_head(service: Service) -> None:
    found = chunks(service, COUNT)
    heads = {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in found}
    assert len(heads) == 1
    assert heads.pop()[3] == "chat.completion.chunk"


@pytest.mark.parametrize("format", ["think_tags", "split", "hidden"])
@pytest.mark.parametrize("fields", [{}, {"stop": ["e", "\n\n"]}, {"max_tokens": 13}], ids=str)
def test_f66_the_deltas_are_the_unstreamed_text(
    service: Service, format: str, fields: dict[str, Any]
) -> None:
    body = {**SEEDED, "reasoning_format": format, **fields}
    (choice,) = post(service, body).json()["choices"]
    found = chunks(service, body)
    for field in ("content", "reasoning_content", "reasoning"):
        assert text_of(found, field) == (choice["message"].get(field) or "")
    ends = [part["finish_reason"] for chunk in found for part in chunk["choices"]]
    assert ends[-1] == choice["finish_reason"]


@pytest.mark.parametrize("n", [1, 2])
def test_f67_each_choice_ends_once_after_its_text(service: Service, n: int) -> None:
    found = chunks(service, {**COUNT, "n": n, "seed": 3})
    for index in range(n):
        parts = [part for chunk in found for part in chunk["choices"] if part["index"] == index]
        assert [part["finish_reason"] is None for part in parts] == [True] * (len(parts) - 1) + [
            False
        ]
        assert parts[-1]["delta"] == {}


def test_f68_no_delta_has_both_texts_and_none_is_empty(service: Service) -> None:
    found = chunks(service, {**COUNT, "reasoning_format": "split"})
    for delta in [chunk["choices"][0]["delta"] for chunk in found][1:-1]:
        assert bool(delta.get("content")) != bool(delta.get("reasoning_content"))
        assert delta.get("reasoning_content") == delta.get("reasoning")


def test_f69_usage_comes_last_and_only_when_asked_for(service: Service) -> None:
    *before, last = chunks(service, {**COUNT, "stream_options": {"include_usage": True}})
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in before)
    silent: list[dict[str, Any]] = [
        {},
        {"stream_options": {}},
        {"stream_options": {"include_usage": False}},
    ]
    for fields in silent:
        assert not any("usage" in chunk for chunk in chunks(service, {**COUNT, **fields}))


def test_f70_a_success_ends_with_one_done(service: Service) -> None:
    lines = stream(service, COUNT)
    assert lines[-1] == "data: [DONE]"
    assert lines.count("data: [DONE]") == 1


def test_f71_characters_split_over_tokens_arrive_whole(service: Service) -> None:
    """A grammar makes the demo model say what it never would."""
    said = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"const": EMOJI}}}
    body = asked("Say it", reasoning_effort="none", response_format=said)
    deltas = [text_of([chunk]) for chunk in chunks(service, body)]
    assert json.loads("".join(deltas)) == EMOJI
    assert len(deltas) > len(EMOJI)
    for delta in deltas:
        delta.encode()  # no half of a surrogate pair
        assert "\ufffd" not in delta
    truncated = [text_of(chunks(service, {**body, "max_tokens": count})) for count in range(1, 40)]
    assert all(text.rstrip("\ufffd").count("\ufffd") == 0 for text in truncated)
    assert all(text.count("\ufffd") <= 1 for text in truncated)


def test_f72_the_beginning_of_a_stop_is_never_shown_and_then_released(service: Service) -> None:
    body = asked("How many a's are in the word 'banana'?", reasoning_format="split")
    content = text_of(chunks(service, body))
    words = content.split()
    stop = f"{words[2]} {words[3]}"
    cut = chunks(service, {**body, "stop": [stop]})
    assert text_of(cut) == content.partition(stop)[0]
    assert text_of(chunks(service, {**body, "stop": [f"{words[2]} never"]})) == content


def test_f73_a_stream_that_queues_is_told_its_place(
    service: Service, client: openai.OpenAI
) -> None:
    long = {**COUNT_TO_150, "max_tokens": 1500}
    fillers = [opened(service, {**long, "stream": True}) for _ in range(FILLERS)]
    try:
        assert eventually(lambda: service.metric("deeprequest_num_requests_running") == FILLERS)
        with ThreadPoolExecutor(2) as pool:
            raw = pool.submit(stream, service, asked(max_tokens=5))
            typed = pool.submit(_typed, client)
            time.sleep(3 * KEEP_ALIVE_S)
            for filler in fillers:
                filler.close()
            lines = raw.result()
            assert typed.result()
    finally:
        for filler in fillers:
            filler.close()
    comments = [line for line in lines if line.startswith(":")]
    assert comments[0].startswith(": queued position=")
    assert lines.index(comments[-1]) < lines.index("data: [DONE]") == len(lines) - 1
    assert events_of(lines)[-1]["choices"][0]["finish_reason"] is not None


def _typed(client: openai.OpenAI) -> str:
    """What the SDK makes of a stream with comments."""
    events = client.chat.completions.create(**asked(max_tokens=5), stream=True)
    return "".join(event.choices[0].delta.content or "" for event in events)


def test_f74_choices_interleave_and_each_is_itself(service: Service) -> None:
    body = {**SEEDED, "n": 3}
    whole = post(service, body).json()["choices"]
    found = chunks(service, body)
    order = [part["index"] for chunk in found for part in chunk["choices"]]
    assert order != sorted(order)
    for choice in whole:
        assert text_of(found, index=choice["index"]) == choice["message"]["content"]


def test_f75_a_killed_rank_is_one_error_event_and_no_done(service: Service) -> None:
    ranks = service.cli("status")["replicas"][0]["ranks"]
    try:
        with streaming(service, COUNT_TO_150) as reply:
            lines = reply.iter_lines()
            for _ in range(10):
                next(lines)
            os.kill(ranks[0]["pid"], signal.SIGKILL)
            rest = [line for line in lines if line.startswith("data: ")]
        assert "error" in events_of(rest)[-1]
        assert sum("error" in event for event in events_of(rest)) == 1
        assert "data: [DONE]" not in rest
    finally:
        assert eventually(lambda: service.get("/ready")[0] == 503)
        service.wait_until_ready()
    assert post(service, asked(max_tokens=2)).status_code == 200


def test_f75_the_sdk_raises_what_an_error_event_says(
    service: Service, client: openai.OpenAI
) -> None:
    endless = {name: value for name, value in COUNT_TO_150.items() if name != "ignore_eos"}
    events = client.chat.completions.create(**endless, extra_body={"ignore_eos": True}, stream=True)
    first = next(iter(events))
    assert post(service, b"", path=f"/v1/chat/completions/{first.id}/cancel").status_code == 200
    with pytest.raises(openai.APIError) as caught:
        list(events)
    assert caught.value.code == "request_cancelled"


def test_f76_what_is_wrong_is_told_by_status_also_of_a_stream(service: Service) -> None:
    wrongs: list[dict[str, Any]] = [{"temperature": 3}, {"messages": []}, {"max_tokens": 4096}]
    for fields in wrongs:
        error_of(post(service, asked(**fields, stream=True)), 400)


def test_f77_the_sdks_stream_helper_returns_a_completion_with_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**COUNT, stream_options={"include_usage": True}) as helper:
        for _ in helper:
            pass
        completion = helper.get_final_completion()
    assert completion.usage is not None
    assert completion.usage.completion_tokens > 0
    assert completion.choices[0].message.content


def test_f78_a_reader_that_reads_nothing_slows_nobody_and_is_given_up(service: Service) -> None:
    flood = {
        **COUNT_TO_150,
        "stream": True,
        "n": 8,
        "max_tokens": 4000,
        "logprobs": True,
        "top_logprobs": 20,
    }
    before = counted(service, "deeprequest_requests_total", status="499")
    with opened(service, flood, buffer=4096):
        for _ in range(3):
            assert chunks(service, COUNT)
        assert eventually(lambda: is_idle(service), within_s=60)
    assert counted(service, "deeprequest_requests_total", status="499") == before + 1


def test_f78_a_reader_of_a_byte_at_a_time_gets_everything(service: Service) -> None:
    with opened(service, {**COUNT, "stream": True}, buffer=4096) as connection:
        received = _slowly(connection)
    data = [line for line in received.decode().splitlines() if line.startswith("data: {")]
    text = text_of([json.loads(line.removeprefix("data: ")) for line in data])
    assert text == post(service, COUNT).json()["choices"][0]["message"]["content"]


def _slowly(connection: socket.socket) -> bytes:
    received = b""
    while b"[DONE]" not in received:
        received += connection.recv(1 if len(received) < 300 else 512)
        time.sleep(0.002)
    return received
