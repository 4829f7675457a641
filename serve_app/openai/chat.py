"""The chat completion and its chunks: deltas of the engine in, JSON for the client out.

Owns the two objects, `chat.completion` and `chat.completion.chunk`, and their field order. Refuses
to know HTTP, admission and where deltas come from. Both objects are built from the same pieces, so
a stream, concatenated, is the whole answer.

    first event   {"role": "assistant", "content": ""}
    events        {"content": ...}, or both names of reasoning; never reasoning and content at once
    last event    {} with a finish_reason
    usage event   choices [], only when asked for; then usage is null on all others
    [DONE]        only after all that
"""

import time
import uuid
from typing import Any, NamedTuple

import orjson

from cluster.request import FinishReason, RequestOutput, Usage
from serve_app.openai import sse
from serve_app.openai.reasoning_format import ReasoningFormat, ReasoningFormatter

_FINISH_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
SERVICE_TIER = "default"


class ResponseHead(NamedTuple):
    """What all parts of one response share."""

    id: str
    created: int
    """Unix time in seconds."""
    model: str
    system_fingerprint: str
    """Changes with the weights and with the configuration."""

    @classmethod
    def new(cls, model: str, system_fingerprint: str) -> "ResponseHead":
        return cls(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model, system_fingerprint)


def usage_object(usage: Usage) -> dict[str, Any]:
    """Token counts in OpenAI's shape, both detail objects always there."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "accepted_prediction_tokens": usage.accepted_prediction_tokens,
            "rejected_prediction_tokens": usage.rejected_prediction_tokens,
        },
    }


class ChatCompletion:
    """Collects one answer that is sent in one piece."""

    def __init__(
        self,
        head: ResponseHead,
        reasoning_format: ReasoningFormat,
        *,
        thinking: bool,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """`thinking`: whether the prompt ends in an open think block."""
        self._head = head
        self._split = reasoning_format == "split"
        self._formatter = ReasoningFormatter(reasoning_format, thinking=thinking)
        self._metadata = metadata
        self._reasoning: list[str] = []
        self._content: list[str] = []

    def push(self, output: RequestOutput) -> None:
        """Takes the next delta."""
        for reasoning, content in self._formatter.push(output):
            self._reasoning.append(reasoning)
            self._content.append(content)

    def body(self, last: RequestOutput) -> bytes:
        """The response body; `last` is the delta, pushed before, that carries finish and usage.

        Raises:
            ValueError: `last` is not the end of an answer (an error, an abort, no usage).
        """
        finish_reason, usage = _end(last)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._content)}
        if self._split:
            reasoning = "".join(self._reasoning)
            message |= {"reasoning_content": reasoning, "reasoning": reasoning}
        message["refusal"] = None
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": last.stop_reason,
        }
        completion: dict[str, Any] = {
            "id": self._head.id,
            "object": "chat.completion",
            "created": self._head.created,
            "model": self._head.model,
            "choices": [choice],
            "usage": usage_object(usage),
            "service_tier": SERVICE_TIER,
            "system_fingerprint": self._head.system_fingerprint,
        }
        if self._metadata is not None:
            completion["metadata"] = self._metadata
        return orjson.dumps(completion)


class ChatStream:
    """Writes one answer as server-sent events, ready to be sent."""

    def __init__(
        self,
        head: ResponseHead,
        reasoning_format: ReasoningFormat,
        *,
        thinking: bool,
        include_usage: bool = False,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """`thinking`: whether the prompt ends in an open think block."""
        self._formatter = ReasoningFormatter(reasoning_format, thinking=thinking)
        self._include_usage = include_usage
        self._metadata = metadata
        # An event is prefix + delta or choices + suffix; only the middle is made for each token.
        self._prefix = b"data: " + orjson.dumps(
            {
                "id": head.id,
                "object": "chat.completion.chunk",
                "created": head.created,
                "model": head.model,
                "service_tier": SERVICE_TIER,
                "system_fingerprint": head.system_fingerprint,
            }
        ).removesuffix(b"}")
        ending = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._delta_prefix = self._prefix + b',"choices":[{"index":0,"delta":'
        self._delta_suffix = b',"logprobs":null,"finish_reason":null}]' + ending
        self._content_prefix = self._delta_prefix + b'{"content":'
        self._content_suffix = b"}" + self._delta_suffix
        self._ending = ending

    def first(self) -> bytes:
        """The event that opens every stream; may be sent before there is a token."""
        opening = b'{"role":"assistant","content":""}' + self._delta_suffix
        if self._metadata is not None:
            echo = b'}],"metadata":' + orjson.dumps(self._metadata)
            opening = opening.replace(b"}]", echo, 1)
        return self._delta_prefix + opening

    def push(self, output: RequestOutput) -> bytes:
        """The events of the next delta; b"" if there is nothing to show yet.

        With the last delta come the finish event, the usage event if asked for, and [DONE].

        Raises:
            ValueError: the delta ends in an error or an abort: send an error event instead.
        """
        events = [self._text_event(*delta) for delta in self._formatter.push(output)]
        if output.finish_reason is not None:
            finish_reason, usage = _end(output)
            events.append(self._finish_event(finish_reason, output.stop_reason))
            if self._include_usage:
                counts = orjson.dumps(usage_object(usage))
                events.append(self._prefix + b',"choices":[],"usage":' + counts + b"}\n\n")
            events.append(sse.DONE)
        return b"".join(events)

    def _text_event(self, reasoning: str, content: str) -> bytes:
        if content:
            return self._content_prefix + orjson.dumps(content) + self._content_suffix
        text = orjson.dumps(reasoning)
        delta = b'{"reasoning_content":' + text + b',"reasoning":' + text + b"}"
        return self._delta_prefix + delta + self._delta_suffix

    def _finish_event(self, finish_reason: str, stop_reason: str | int | None) -> bytes:
        reasons = orjson.dumps({"finish_reason": finish_reason, "stop_reason": stop_reason})
        return self._delta_prefix + b'{},"logprobs":null,' + reasons[1:] + b"]" + self._ending


def _end(output: RequestOutput) -> tuple[str, Usage]:
    if output.error is not None or output.usage is None or output.finish_reason is None:
        raise ValueError("this delta is not the end of an answer")
    finish_reason = _FINISH_REASONS.get(output.finish_reason)
    if finish_reason is None:
        raise ValueError(f"a client is never told that a request ended by {output.finish_reason}")
    return finish_reason, output.usage
