import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion as SdkCompletion
from openai.types.chat import ChatCompletionChunk as SdkChunk

from cluster.request import FinishReason, ReasoningStop, RequestOutput, Usage
from serve_app.openai.chat import ChatCompletion, ChatStream
from serve_app.openai.chat_choice import ChatStyle
from serve_app.openai.reasoning_format import ReasoningFormat
from serve_app.openai.response import ResponseHead, StreamUsage, usage_object
from tests.serve_app.openai.answers import STRAWBERRY, Answer, draw_answer

HEAD = ResponseHead("chatcmpl-1", 1704476253, "deepseek-r1-32b", "fp_1")
FORMATS: tuple[ReasoningFormat, ...] = ("think_tags", "split", "hidden")
CUTS = st.lists(st.integers(0, 26), max_size=26)


def whole(answer: Answer, format: ReasoningFormat = "think_tags", **options: Any) -> dict[str, Any]:
    completion = ChatCompletion(HEAD, ChatStyle(format, answer.thinking), **options)
    for output in (outputs := answer.deltas([2, 5])):
        completion.push(0, output)
    assert outputs[-1].usage is not None
    body: dict[str, Any] = json.loads(completion.body(outputs[-1].usage))
    return body


def streamed(
    answer: Answer,
    cuts: list[int],
    format: ReasoningFormat = "think_tags",
    **options: Any,
) -> list[str]:
    """The data of each event."""
    stream = ChatStream(HEAD, ChatStyle(format, answer.thinking), **options)
    outputs = answer.deltas(cuts)
    assert outputs[-1].usage is not None
    raw = stream.first() + b"".join(stream.push(0, output) for output in outputs)
    raw += stream.end(outputs[-1].usage)
    *events, rest = raw.decode().split("\n\n")
    assert rest == ""
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


def chunks(events: list[str]) -> list[dict[str, Any]]:
    assert events.count("[DONE]") == 1
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


@pytest.mark.parametrize("format", FORMATS)
def test_completion_is_what_the_sdk_expects(format: ReasoningFormat) -> None:
    parsed = SdkCompletion.model_validate(whole(STRAWBERRY, format), strict=True)
    assert parsed.id.startswith("chatcmpl-")
    assert parsed.object == "chat.completion"
    assert parsed.model == "deepseek-r1-32b"
    assert parsed.system_fingerprint == "fp_1"
    choice = parsed.choices[0]
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert choice.message.content is not None
    assert choice.message.content.endswith("There are 3 r's.")
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == parsed.usage.prompt_tokens + parsed.usage.completion_tokens
    assert parsed.usage.prompt_tokens_details is not None
    assert parsed.usage.prompt_tokens_details.cached_tokens == 8
    assert parsed.usage.completion_tokens_details is not None
    assert parsed.usage.completion_tokens_details.reasoning_tokens == 14


def test_split_shows_the_thoughts_under_both_names() -> None:
    message = whole(STRAWBERRY, "split")["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] == "s-t-r: one r."
    assert message["content"] == "There are 3 r's."


def test_hidden_thoughts_are_nowhere_but_in_the_usage() -> None:
    body = whole(STRAWBERRY, "hidden")
    assert "s-t-r" not in json.dumps(body)
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 14


def test_truncated_thinking_gives_empty_content_and_length() -> None:
    cut = Answer("hm", False, "", finish_reason=FinishReason.LENGTH)
    choice = whole(cut, "split")["choices"][0]
    assert choice["message"]["content"] == ""
    assert choice["message"]["reasoning"] == "hm"
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("stop_reason", ["END", 151643, None])
def test_what_stopped_the_answer_is_told(stop_reason: str | int | None) -> None:
    answer = STRAWBERRY._replace(stop_reason=stop_reason)
    assert whole(answer)["choices"][0]["stop_reason"] == stop_reason
    assert chunks(streamed(answer, []))[-1]["choices"][0]["stop_reason"] == stop_reason


@pytest.mark.parametrize("stop", [ReasoningStop.BUDGET, ReasoningStop.LOOP, None])
def test_what_closed_the_thoughts_is_told(stop: ReasoningStop | None) -> None:
    answer = STRAWBERRY._replace(reasoning_stop=stop)
    told = {"reasoning_truncated": stop is not None, "reasoning_stop": stop}
    assert told.items() <= whole(answer)["choices"][0].items()
    *others, last = chunks(streamed(answer, [3]))
    assert told.items() <= last["choices"][0].items()
    assert not any("reasoning_stop" in chunk["choices"][0] for chunk in others)


def test_metadata_is_echoed_and_absent_when_not_given() -> None:
    echoed = {"run": 'a"}]', "n": "1"}
    assert whole(STRAWBERRY, echo={"metadata": echoed})["metadata"] == echoed
    first, *rest = chunks(streamed(STRAWBERRY, [3], echo={"metadata": echoed}))
    assert first["metadata"] == echoed
    assert not any("metadata" in chunk for chunk in rest)
    assert "metadata" not in whole(STRAWBERRY)


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_every_chunk_is_what_the_sdk_expects(format: ReasoningFormat, include_usage: bool) -> None:
    events = streamed(STRAWBERRY, list(range(40)), format, usage=StreamUsage(include_usage))
    parsed = [SdkChunk.model_validate(chunk, strict=True) for chunk in chunks(events)]
    assert {(c.id, c.created, c.model, c.object) for c in parsed} == {
        ("chatcmpl-1", 1704476253, "deepseek-r1-32b", "chat.completion.chunk")
    }
    assert {chunk.system_fingerprint for chunk in parsed} == {"fp_1"}


def test_a_stream_opens_with_the_role_and_ends_with_an_empty_delta() -> None:
    first, *middle, last = chunks(streamed(STRAWBERRY, [4, 8]))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [first, *middle])
    assert not any("usage" in chunk for chunk in [first, *middle, last])


def test_usage_comes_last_and_only_when_asked_for() -> None:
    *others, last = chunks(streamed(STRAWBERRY, [4], usage=StreamUsage(True)))
    assert last["choices"] == []
    assert last["usage"] == whole(STRAWBERRY)["usage"]
    assert all(chunk["usage"] is None for chunk in others)


def test_running_usage_counts_what_was_generated_so_far() -> None:
    usage = StreamUsage(at_end=True, running=True, prompt_tokens=24)
    stream = ChatStream(HEAD, ChatStyle("think_tags", thinking=True), usage=usage)
    outputs = STRAWBERRY.deltas([4, 8])
    for output, ids in zip(outputs, ([1, 2], [3], [4, 5, 6]), strict=True):
        output.token_ids = ids
    assert outputs[-1].usage is not None
    raw = stream.first() + b"".join(stream.push(0, output) for output in outputs)
    raw += stream.end(outputs[-1].usage)
    events = [json.loads(line[6:]) for line in raw.decode().split("\n\n")[:-2]]
    counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
    assert counts == [0, 2, 3, 6, 6]
    assert events[1]["usage"] == {"prompt_tokens": 24, "completion_tokens": 2, "total_tokens": 26}
    assert events[-1]["usage"] == whole(STRAWBERRY)["usage"]


@pytest.mark.parametrize("format", FORMATS)
@given(answer=draw_answer(), cuts=CUTS)
@settings(deadline=None, max_examples=150)
def test_streamed_deltas_join_to_the_unstreamed_answer(
    format: ReasoningFormat, answer: Answer, cuts: list[int]
) -> None:
    message = whole(answer, format)["choices"][0]["message"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(streamed(answer, cuts, format))]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    for name in ("reasoning_content", "reasoning"):
        assert "".join(delta.get(name, "") for delta in deltas) == message.get(name, "")
    for delta in deltas[1:-1]:
        assert ("content" in delta) != ("reasoning" in delta)
        assert all(delta.values())


def test_nothing_to_show_makes_no_event() -> None:
    stream = ChatStream(HEAD, ChatStyle("hidden", thinking=True))
    assert stream.push(0, RequestOutput("r", reasoning="hm", token_ids=[1, 2])) == b""


@pytest.mark.parametrize(
    "last",
    [
        RequestOutput("r", finish_reason=FinishReason.ERROR, error="engine_dead"),
        RequestOutput("r", finish_reason=FinishReason.ABORT, usage=Usage(1, 1, 0, 0)),
        RequestOutput("r", finish_reason=FinishReason.STOP),
    ],
)
def test_a_failure_is_never_dressed_up_as_an_answer(last: RequestOutput) -> None:
    style = ChatStyle("split", thinking=True)
    with pytest.raises(ValueError, match=r"not the end|never told"):
        ChatStream(HEAD, style).push(0, last)
    completion = ChatCompletion(HEAD, style)
    completion.push(0, last)
    with pytest.raises(ValueError, match=r"not the end|never told"):
        completion.body(Usage(1, 1, 0, 0))


def test_a_choice_that_never_ended_is_no_answer() -> None:
    completion = ChatCompletion(HEAD, ChatStyle("split", thinking=True), n=2)
    for output in STRAWBERRY.deltas([]):
        completion.push(0, output)
    with pytest.raises(ValueError, match="not the end"):
        completion.body(Usage(1, 1, 0, 0))


@given(answers=st.lists(draw_answer(), min_size=2, max_size=4), cuts=CUTS, data=st.data())
@settings(deadline=None, max_examples=60)
def test_choices_interleave_and_each_is_what_it_is_alone(
    answers: list[Answer], cuts: list[int], data: st.DataObject
) -> None:
    answers = [answer._replace(thinking=answers[0].thinking) for answer in answers]
    style = ChatStyle("split", answers[0].thinking)
    stream = ChatStream(HEAD, style, n=len(answers), usage=StreamUsage(True))
    completion = ChatCompletion(HEAD, style, n=len(answers))
    left = {index: answer.deltas(cuts) for index, answer in enumerate(answers)}
    raw = stream.first()
    while left:
        index = data.draw(st.sampled_from(sorted(left)))
        output = left[index].pop(0)
        completion.push(index, output)
        raw += stream.push(index, output)
        left = {index: outputs for index, outputs in left.items() if outputs}
    raw += stream.end(Usage(1, 2, 3, 4))
    events = [event.removeprefix("data: ") for event in raw.decode().split("\n\n")[:-1]]
    *parts, usage = chunks(events)
    assert usage["choices"] == []
    whole_choices = json.loads(completion.body(Usage(1, 2, 3, 4)))["choices"]
    assert [choice["index"] for choice in whole_choices] == list(range(len(answers)))
    for index, choice in enumerate(whole_choices):
        mine = [part["choices"][0] for part in parts if part["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert [part["finish_reason"] for part in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        for name in ("content", "reasoning"):
            joined = "".join(part["delta"].get(name, "") for part in mine)
            assert joined == choice["message"][name]


def test_heads_are_unique_and_dated_now() -> None:
    one, two = ResponseHead.new("x", "m", "fp"), ResponseHead.new("x", "m", "fp")
    assert one.id != two.id
    assert abs(one.created - time.time()) < 60


def test_usage_always_has_both_details() -> None:
    assert usage_object(Usage(24, 215, 16, 100)) == {
        "prompt_tokens": 24,
        "completion_tokens": 215,
        "total_tokens": 239,
        "prompt_tokens_details": {"cached_tokens": 16},
        "completion_tokens_details": {
            "reasoning_tokens": 100,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
