"""The chat completion and its chunks: deltas of the engine in, JSON for the client out.

Owns the two objects, `chat.completion` and `chat.completion.chunk`, and their field order. Refuses
to know HTTP, admission and where deltas come from. Both objects are built from the same pieces, so
a stream, concatenated, is the whole answer.

    first event   {"role": "assistant", "content": ""}, of each choice
    events        {"content": ...}, or both names of reasoning; never reasoning and content at once
    last event    {} with a finish_reason, of each choice
    usage event   choices [], only when asked for; then usage is null on all others
    [DONE]        only after all that
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson

from cluster.request import RequestOutput, Usage
from serve_app.openai import sse
from serve_app.openai.chat_choice import ChatStyle, CollectedChoice, StreamedChoice
from serve_app.openai.response import (
    NO_USAGE,
    ChunkFrame,
    ResponseHead,
    StreamUsage,
    usage_object,
)

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class ChatCompletion:
    """Collects the answers to one chat that are sent in one piece."""

    def __init__(
        self,
        head: ResponseHead,
        style: ChatStyle,
        *,
        n: int = 1,
        echo: Mapping[str, Any] = _NOTHING,
    ) -> None:
        """`echo`: what of the request the response repeats, such as metadata."""
        self._head = head
        self._echo = echo
        self._choices = [CollectedChoice(index, style) for index in range(n)]

    def push(self, index: int, output: RequestOutput) -> None:
        """Takes the next delta of a choice."""
        self._choices[index].push(output)

    def body(self, usage: Usage) -> bytes:
        """The response body, once every choice has ended.

        Raises:
            ValueError: a choice did not end in an answer (an error, an abort).
        """
        completion: dict[str, Any] = {
            "id": self._head.id,
            "object": "chat.completion",
            "created": self._head.created,
            "model": self._head.model,
            "choices": [choice.object() for choice in self._choices],
            "usage": usage_object(usage),
            "service_tier": self._head.service_tier,
            "system_fingerprint": self._head.system_fingerprint,
            **self._echo,
        }
        return orjson.dumps(completion)


class ChatStream:
    """Writes the answers to one chat as server-sent events, ready to be sent."""

    def __init__(
        self,
        head: ResponseHead,
        style: ChatStyle,
        *,
        n: int = 1,
        usage: StreamUsage = NO_USAGE,
        echo: Mapping[str, Any] = _NOTHING,
    ) -> None:
        """As ChatCompletion; `echo` goes into the first event."""
        self._echo = echo
        self._frame = ChunkFrame(head, "chat.completion.chunk", usage)
        self._choices = [StreamedChoice(index, style, self._frame) for index in range(n)]

    def first(self) -> bytes:
        """The events that open every stream; may be sent before there is a token."""
        echo = b"," + sse.line(dict(self._echo))[1:-1] if self._echo else b""
        opening, *others = self._choices
        return opening.first(echo) + b"".join([choice.first() for choice in others])

    def push(self, index: int, output: RequestOutput) -> bytes:
        """The events of a choice's next delta; b"" if there is nothing to show yet.

        Raises:
            ValueError: the delta ends in an error or an abort: send an error event instead.
        """
        return self._choices[index].push(output)

    def end(self, usage: Usage) -> bytes:
        """What follows once every choice has ended: token counts if asked for, and [DONE]."""
        return self._frame.end_of_stream(usage)
