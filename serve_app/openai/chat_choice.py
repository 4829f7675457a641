"""One choice of a chat: its deltas as a choice object, or as the choices of chunks.

Owns what a choice looks like and the order of its chunks. Refuses to know what surrounds it: other
choices, usage, the head of the response.
"""

from typing import Any, NamedTuple

from cluster.request import RequestOutput
from cluster.text.tokenizer import Tokenizer
from cluster.text.tool_reader import AnswerPiece, ToolReader
from serve_app.openai import sse
from serve_app.openai.reasoning_format import (
    ClientDelta,
    ReasoningFormat,
    ReasoningFormatter,
)
from serve_app.openai.response import ChunkFrame, told_reason
from serve_app.openai.token_details import TokenDetails
from serve_app.openai.tool_deltas import CollectedCalls, call_delta


class ChatStyle(NamedTuple):
    """How the answers of one chat are shown."""

    reasoning_format: ReasoningFormat
    thinking: bool
    """Whether the prompt ends in an open think block ..."""
    continued: bool = False
    """... which was opened by the one who asked."""
    tokenizer: Tokenizer | None = None
    """None: nothing is told of the tokens beside their text."""
    top_logprobs: int | None = None
    """How many of the likeliest tokens to tell beside each; None tells none."""
    token_ids: bool = False
    """Whether to tell the generated ids."""
    calls: bool = False
    """Whether the answers may hold calls."""

    def formatter(self) -> ReasoningFormatter:
        """What shows a choice's thoughts, from their beginning."""
        return ReasoningFormatter(
            self.reasoning_format, thinking=self.thinking, continued=self.continued
        )

    def details(self) -> TokenDetails | None:
        """What a choice tells of its tokens, from its beginning."""
        if self.tokenizer is None or not (self.token_ids or self.top_logprobs is not None):
            return None
        return TokenDetails(
            self.tokenizer,
            self.reasoning_format,
            thinking=self.thinking,
            continued=self.continued,
            top_logprobs=self.top_logprobs,
            token_ids=self.token_ids,
        )


class _ShownAnswer:
    """What of one answer is shown, piece by piece."""

    def __init__(self, style: ChatStyle) -> None:
        self.details = style.details()
        self._formatter = style.formatter()
        self._reader = ToolReader() if style.calls else None

    def push(self, output: RequestOutput) -> list[ClientDelta | AnswerPiece]:
        """The pieces of the next delta: thoughts, text, or of a call."""
        deltas = self._formatter.push(output)
        if self.details is not None:
            self.details.push(output, "".join([content for _, content in deltas]))
        if self._reader is None:
            return [*deltas]
        shown: list[ClientDelta | AnswerPiece] = []
        found: list[AnswerPiece] = []
        for delta in deltas:
            if delta.reasoning:
                shown.append(delta)
            else:
                found += self._reader.push(delta.content)
        if output.finish_reason is not None:
            found += self._reader.flush()
        return shown + [ClientDelta("", one.text) if one.call is None else one for one in found]

    def told(self) -> dict[str, Any]:
        """What is told of the tokens that came since the last call."""
        return {"logprobs": None} if self.details is None else self.details.take()

    def ends(self, last: RequestOutput) -> dict[str, Any]:
        """What ended the answer, and the thoughts before it. A stop string may cut a call: nobody
        is told to make that one."""
        reason = told_reason(last)
        reader = self._reader
        called = reader is not None and reader.num_calls > 0 and not reader.within_a_call
        return {
            "finish_reason": "tool_calls" if called and reason == "stop" else reason,
            "stop_reason": last.stop_reason,
            "reasoning_truncated": last.reasoning_stop is not None,
            "reasoning_stop": last.reasoning_stop,
        }


class CollectedChoice:
    """Collects one answer that is sent in one piece."""

    def __init__(self, index: int, style: ChatStyle) -> None:
        self._index = index
        self._split = style.reasoning_format == "split"
        self._answer = _ShownAnswer(style)
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls = CollectedCalls()
        self._last: RequestOutput | None = None

    def push(self, output: RequestOutput) -> None:
        """Takes the next delta."""
        for piece in self._answer.push(output):
            if isinstance(piece, AnswerPiece):
                self._calls.push(piece)
            else:
                self._reasoning.append(piece.reasoning)
                self._content.append(piece.content)
        self._last = output

    def object(self) -> dict[str, Any]:
        """The entry of `choices`.

        Raises:
            ValueError: the last delta is not the end of an answer (an error, an abort).
        """
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._content)}
        if self._calls.calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = self._calls.calls
        if self._split:
            reasoning = "".join(self._reasoning)
            message |= {"reasoning_content": reasoning, "reasoning": reasoning}
        message["refusal"] = None
        last = self._last or RequestOutput("")
        return {
            "index": self._index,
            "message": message,
            **self._answer.told(),
            **self._answer.ends(last),
        }


class StreamedChoice:
    """Writes one answer as server-sent events."""

    def __init__(self, index: int, style: ChatStyle, frame: ChunkFrame) -> None:
        self._answer = _ShownAnswer(style)
        self._frame = frame
        # An event is prefix + delta + suffix; only the middle is made for each token.
        self._delta_prefix = frame.prefix + b',"choices":[{"index":%d,"delta":' % index
        self._content_prefix = self._delta_prefix + b'{"content":'
        self._delta_suffix: bytes | None = None
        if self._answer.details is None and not frame.usage.running:
            self._delta_suffix = self._end_of_choice({"logprobs": None, "finish_reason": None})

    def first(self, echo: bytes = b"") -> bytes:
        """The event that opens the choice; `echo` follows its choices."""
        opening = b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return self._delta_prefix + opening + echo + self._frame.end_of_event()

    def push(self, output: RequestOutput) -> bytes:
        """The events of the next delta, the finish event with the last one; b"" if there is
        nothing to show yet.

        Raises:
            ValueError: the delta ends in an error or an abort: send an error event instead.
        """
        self._frame.completion_tokens += len(output.token_ids)
        pieces = self._answer.push(output)
        events = [self._event(piece, is_last=piece is pieces[-1]) for piece in pieces]
        if output.finish_reason is not None:
            ending = self._end_of_choice({**self._answer.told(), **self._answer.ends(output)})
            events.append(self._delta_prefix + b"{}" + ending)
        return b"".join(events)

    def _event(self, piece: ClientDelta | AnswerPiece, *, is_last: bool) -> bytes:
        """`is_last`: of its delta; it carries what is told of the delta's tokens."""
        ending = self._delta_suffix
        if ending is None:
            told = self._answer.told() if is_last else {"logprobs": None}
            ending = self._end_of_choice({**told, "finish_reason": None})
        if isinstance(piece, AnswerPiece):
            return self._delta_prefix + sse.line(call_delta(piece)) + ending
        if piece.content:
            return self._content_prefix + sse.line(piece.content) + b"}" + ending
        text = sse.line(piece.reasoning)
        delta = b'{"reasoning_content":' + text + b',"reasoning":' + text + b"}"
        return self._delta_prefix + delta + ending

    def _end_of_choice(self, fields: dict[str, Any]) -> bytes:
        """The fields behind a choice's delta, and the end of the event."""
        return b"," + sse.line(fields)[1:] + b"]" + self._frame.end_of_event()
