"""The text completion and its chunks: deltas of the engine in, JSON for the client out.

Owns the object `text_completion`, whole and streamed, and which runs of the engine become choices.
Refuses to know HTTP, admission and where deltas come from. Both forms are built from the same
pieces, so a stream, concatenated, is the whole text.

    runs      prompt 0: a b c    prompt 1: d e f       best_of 3
    choices   prompt 0: b a      prompt 1: d f         n 2: the likeliest tokens on average first

    events    the echo, of each choice; the text; the last text with the finish_reason
    usage event and [DONE] as in a chat
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from cluster.request import RequestOutput, Usage
from cluster.text.tokenizer import Tokenizer
from serve_app.openai import sse
from serve_app.openai.response import (
    NO_USAGE,
    ChunkFrame,
    ResponseHead,
    StreamUsage,
    told_reason,
    usage_object,
)
from serve_app.openai.text_logprobs import (
    GeneratedText,
    Lists,
    Piece,
    PromptEcho,
    no_entries,
)


class RawPrompt(NamedTuple):
    """A prompt as the engine is given it."""

    token_ids: list[int]
    num_unsaid: int
    """Tokens at its beginning that its sender did not write."""


class TextStyle(NamedTuple):
    """How the answers to raw prompts are shown."""

    tokenizer: Tokenizer
    echo: bool = False
    logprobs: bool = False
    token_ids: bool = False
    """Whether to tell the ids of prompt and output."""

    def echo_of(self, prompt: RawPrompt) -> PromptEcho | None:
        """What gives a prompt back, if it is to be."""
        if not self.echo:
            return None
        return PromptEcho(
            self.tokenizer,
            prompt.token_ids,
            num_unsaid=prompt.num_unsaid,
            logprobs=self.logprobs,
        )


class _Run:
    """One generation: its pieces."""

    def __init__(self, style: TextStyle) -> None:
        self._said = GeneratedText(style.tokenizer) if style.logprobs else None

    def push(self, output: RequestOutput, echo: PromptEcho | None) -> Piece:
        """The next delta's."""
        if self._said is None:
            return Piece(output.content, None)
        told, length = output.logprobs or [], 0 if echo is None else echo.length
        return Piece(output.content, self._said.entries(output.token_ids, told, length))


class _CollectedRun(_Run):
    """One generation that is sent in one piece."""

    def __init__(self, style: TextStyle) -> None:
        super().__init__(style)
        self.pieces: list[Piece] = []
        self.token_ids: list[int] = []
        self.last = RequestOutput("")
        self._logprob = 0.0

    def collect(self, output: RequestOutput, echo: PromptEcho | None) -> None:
        """Takes the next delta."""
        self.pieces.append(self.push(output, echo))
        self.token_ids += output.token_ids
        self._logprob += math.fsum(one.logprob for one in output.logprobs or ())
        self.last = output

    @property
    def likelihood(self) -> float:
        """The mean logarithmic probability of its tokens."""
        return self._logprob / max(len(self.token_ids), 1)


class TextCompletion:
    """Collects the answers to raw prompts that are sent in one piece."""

    def __init__(
        self,
        head: ResponseHead,
        style: TextStyle,
        prompts: Sequence[RawPrompt],
        *,
        n: int = 1,
        runs: int = 1,
    ) -> None:
        """`runs` generations of each prompt are pushed, the first prompt's first; the `n` best of
        them are shown."""
        self._head, self._style, self._prompts = head, style, prompts
        self._n, self._per_prompt = n, runs
        self._echoes = [style.echo_of(prompt) for prompt in prompts]
        self._echoed = [[echo.first()] if echo else [] for echo in self._echoes]
        self._runs = [_CollectedRun(style) for _ in range(runs * len(prompts))]

    def push(self, index: int, output: RequestOutput) -> None:
        """Takes the next delta of a run."""
        place = index // self._per_prompt
        echo = self._echoes[place]
        if echo is not None and output.prompt_logprobs:
            self._echoed[place].append(echo.push(output.prompt_logprobs))
        self._runs[index].collect(output, echo)

    def body(self, usage: Usage) -> bytes:
        """The response body, once every run has ended.

        Raises:
            ValueError: a run did not end in a text (an error, an abort).
        """
        choices = [
            self._choice(number, place, run) for number, (place, run) in enumerate(self._chosen())
        ]
        return orjson.dumps(
            {
                "id": self._head.id,
                "object": "text_completion",
                "created": self._head.created,
                "model": self._head.model,
                "choices": choices,
                "usage": usage_object(usage),
                "service_tier": self._head.service_tier,
                "system_fingerprint": self._head.system_fingerprint,
            }
        )

    def _chosen(self) -> Iterator[tuple[int, _CollectedRun]]:
        """(prompt, run) of every choice; in the order of runs where all are shown."""
        for place in range(len(self._prompts)):
            runs = self._runs[place * self._per_prompt :][: self._per_prompt]
            if self._n < len(runs):
                runs = sorted(runs, key=lambda run: run.likelihood, reverse=True)[: self._n]
            yield from ((place, run) for run in runs)

    def _choice(self, index: int, place: int, run: _CollectedRun) -> dict[str, Any]:
        pieces = self._echoed[place] + run.pieces
        choice: dict[str, Any] = {
            "index": index,
            "text": "".join([piece.text for piece in pieces]),
            "logprobs": _joined(pieces) if self._style.logprobs else None,
        }
        if self._style.token_ids:
            choice["prompt_token_ids"] = self._prompts[place].token_ids
            choice["token_ids"] = run.token_ids
        return choice | _ends(run.last)


class TextStream:
    """Writes the answers to raw prompts as server-sent events, ready to be sent."""

    def __init__(
        self,
        head: ResponseHead,
        style: TextStyle,
        prompts: Sequence[RawPrompt],
        *,
        n: int = 1,
        usage: StreamUsage = NO_USAGE,
    ) -> None:
        """As TextCompletion, all runs shown."""
        self._style, self._prompts, self._n = style, prompts, n
        self._frame = ChunkFrame(head, "text_completion", usage)
        self._echoes = [style.echo_of(prompt) for prompt in prompts]
        self._runs = [_Run(style) for _ in range(n * len(prompts))]

    def first(self) -> bytes:
        """What is known before there is a token: the prompts, if they are to be told."""
        if not (self._style.echo or self._style.token_ids):
            return b""
        events = []
        for place, (prompt, echo) in enumerate(zip(self._prompts, self._echoes, strict=True)):
            piece = Piece("", None) if echo is None else echo.first()
            ids: dict[str, Any] = {}
            if self._style.token_ids:
                ids = {"prompt_token_ids": prompt.token_ids, "token_ids": []}
            events += [self._event(index, piece, ids | _GOES_ON) for index in self._choices(place)]
        return b"".join(events)

    def push(self, index: int, output: RequestOutput) -> bytes:
        """The events of a run's next delta; b"" if there is nothing to show yet.

        Raises:
            ValueError: the delta ends in an error or an abort: send an error event instead.
        """
        self._frame.completion_tokens += len(output.token_ids)
        place = index // self._n
        echo = self._echoes[place]
        events = []
        if echo is not None and output.prompt_logprobs:
            piece = echo.push(output.prompt_logprobs)
            events += [self._event(choice, piece, _GOES_ON) for choice in self._choices(place)]
        if output.content or output.token_ids or output.finish_reason is not None:
            ids = {"token_ids": output.token_ids} if self._style.token_ids else {}
            ends = _GOES_ON if output.finish_reason is None else _ends(output)
            events.append(self._event(index, self._runs[index].push(output, echo), ids | ends))
        return b"".join(events)

    def end(self, usage: Usage) -> bytes:
        """What follows once every choice has ended: token counts if asked for, and [DONE]."""
        return self._frame.end_of_stream(usage)

    def _choices(self, place: int) -> range:
        return range(place * self._n, (place + 1) * self._n)

    def _event(self, index: int, piece: Piece, fields: dict[str, Any]) -> bytes:
        choice = {"index": index, "text": piece.text, "logprobs": piece.logprobs, **fields}
        choices = b',"choices":[' + sse.line(choice) + b"]"
        return self._frame.prefix + choices + self._frame.end_of_event()


_GOES_ON: dict[str, Any] = {"finish_reason": None}


def _ends(last: RequestOutput) -> dict[str, Any]:
    return {"finish_reason": told_reason(last), "stop_reason": last.stop_reason}


def _joined(pieces: Sequence[Piece]) -> Lists:
    joined = no_entries()
    for piece in pieces:
        for name, entries in (piece.logprobs or {}).items():
            joined[name] += entries
    return joined
