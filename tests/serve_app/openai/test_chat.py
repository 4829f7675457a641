import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion as SdkCompletion
from openai.types.chat import ChatCompletionChunk as SdkChunk

from cluster.request import FinishReason, RequestOutput, Usage
from serve_app.openai.chat import ChatCompletion, ChatStream, ResponseHead, usage_object
from serve_app.openai.reasoning_format import ReasoningFormat
from tests.serve_app.openai.answers import STRAWBERRY, Answer, draw_answer

HEAD = ResponseHead("chatcmpl-1", 1704476253, "deepseek-r1-32b", "fp_1")
FORMATS: tuple[ReasoningFormat, ...] = ("think_tags", "split", "hidden")
CUTS = st.lists(st.integers(0, 26), max_size=26)


def whole(answer: Answer, format: ReasoningFormat = "think_tags", **options: Any) -> dict[str, Any]:
    completion = ChatCompletion(HEAD, format, thinking=answer.thinking, **options)
    outputs = answer.deltas([2, 5])
    for output in outputs:
        completion.push(output)
    body: dict[str, Any] = json.loads(completion.body(outputs[-1]))
    return body


def streamed(
    answer: Answer,
    cuts: list[int],
    format: ReasoningFormat = "think_tags",
    **options: Any,
) -> list[str]:
    """The data of each event."""
    stream = ChatStream(HEAD, format, thinking=answer.thinking, **options)
    raw = stream.first() + b"".join(stream.push(output) for output in answer.deltas(cuts))
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


def test_metadata_is_echoed_and_absent_when_not_given() -> None:
    echoed = {"run": 'a"}]', "n": "1"}
    assert whole(STRAWBERRY, metadata=echoed)["metadata"] == echoed
    first, *rest = chunks(streamed(STRAWBERRY, [3], metadata=echoed))
    assert first["metadata"] == echoed
    assert not any("metadata" in chunk for chunk in rest)
    assert "metadata" not in whole(STRAWBERRY)


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_every_chunk_is_what_the_sdk_expects(format: ReasoningFormat, include_usage: bool) -> None:
    events = streamed(STRAWBERRY, list(range(40)), format, include_usage=include_usage)
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
    *others, last = chunks(streamed(STRAWBERRY, [4], include_usage=True))
    assert last["choices"] == []
    assert last["usage"] == whole(STRAWBERRY)["usage"]
    assert all(chunk["usage"] is None for chunk in others)


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
    stream = ChatStream(HEAD, "hidden", thinking=True)
    assert stream.push(RequestOutput("r", reasoning="hm", token_ids=[1, 2])) == b""


@pytest.mark.parametrize(
    "last",
    [
        RequestOutput("r", finish_reason=FinishReason.ERROR, error="engine_dead"),
        RequestOutput("r", finish_reason=FinishReason.ABORT, usage=Usage(1, 1, 0, 0)),
        RequestOutput("r", finish_reason=FinishReason.STOP),
    ],
)
def test_a_failure_is_never_dressed_up_as_an_answer(last: RequestOutput) -> None:
    with pytest.raises(ValueError, match=r"not the end|never told"):
        ChatStream(HEAD, "split", thinking=True).push(last)
    with pytest.raises(ValueError, match=r"not the end|never told"):
        ChatCompletion(HEAD, "split", thinking=True).body(last)


def test_heads_are_unique_and_dated_now() -> None:
    one, two = ResponseHead.new("m", "fp"), ResponseHead.new("m", "fp")
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
