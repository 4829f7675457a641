"""Logprobs: what the model thought of each token that content shows, in OpenAI's shape.

Owns the entries, their true bytes, and which tokens content shows. Refuses to know JSON, choices
and streams: it is told the deltas and how much of each was shown.

    token ids   [ thoughts ... ][</think>][ \\n\\n ][ The ][ re ][ half ][ an emoji ][ EOS ]
    think_tags  "<think>", "\\n", and all of them but EOS
    split       The, re, half, an emoji; so does hidden

The entries' bytes, joined, are the content. So in think_tags the opening tag has entries too: it
was given by the template, hence certain. Tokens that show nothing (EOS, what a stop string took)
have none; of one that was cut, the entry spells what is left.
"""

from collections import deque
from typing import Any, NamedTuple

from cluster.request import RequestOutput, TokenLogprobs
from cluster.text.detokenizer import Detokenizer
from cluster.text.tokenizer import THINK_END, Tokenizer
from serve_app.openai.reasoning_format import OPENING, ReasoningFormat


def token_text(data: bytes) -> str:
    """A token's bytes as text; those that are no whole character are written as \\xf0."""
    return data.decode("utf-8", errors="backslashreplace")


def named_logprob(data: bytes, logprob: float) -> dict[str, Any]:
    """A token, by its bytes, as `top_logprobs` names it."""
    return {"token": token_text(data), "logprob": logprob, "bytes": list(data)}


class _Waiting(NamedTuple):
    """A token whose characters may not be shown yet; places are counted in characters."""

    start: int
    end: int
    """Behind the character that it leaves incomplete, if it does."""
    text: str
    """The characters that it completes."""
    token_id: int
    told: TokenLogprobs

    def cut(self, data: bytes, first: int, last: int) -> bytes:
        """What of its bytes lies between two places; line breaks alone lie before the first."""
        if last < self.end == self.start + len(self.text):
            data = data[: len(data) - len(self.text[last - self.start :].encode())]
        return data[max(first - self.start, 0) :]


class ContentLogprobs:
    """Follows one answer; the joined entries do not depend on how the deltas were cut."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        format: ReasoningFormat,
        top: int,
        *,
        thinking: bool,
        continued: bool = False,
    ) -> None:
        """
        Args:
            top: how many of the likeliest are told.
            thinking: whether a think block is open ...
            continued: ... which was opened by the one who asked.
        """
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._shows_thoughts = format == "think_tags"
        self._thinking = thinking
        self._waiting: deque[_Waiting] = deque()
        self._spelt = 0  # characters of what the tokens so far spell
        self._shown = 0  # ... of which so many were shown or skipped
        self._skipped = 0  # the line breaks in front of the content
        if thinking and self._shows_thoughts and not continued:
            for token_id in tokenizer.encode(OPENING):
                certain = TokenLogprobs(0.0, [token_id][:top], [0.0][:top])
                self._take(token_id, certain)

    def push(self, output: RequestOutput, content: str) -> list[dict[str, Any]]:
        """The entries of the tokens that are now shown.

        Args:
            output: the next delta, with its logprobs.
            content: what of it is shown as content.
        """
        for token_id, told in zip(output.token_ids, output.logprobs or (), strict=True):
            if not self._thinking:
                self._take(token_id, told)
            elif self._shows_thoughts:
                self._take_thought(token_id, told)
            elif token_id == self._tokenizer.think_end_id:
                self._thinking = False
        if self._shows_thoughts:
            self._shown += len(content)
        else:
            self._shown += len(output.content)
            self._skipped += len(output.content) - len(content)
        return self._release(finished=output.finish_reason is not None)

    def _take_thought(self, token_id: int, told: TokenLogprobs) -> None:
        if token_id != self._tokenizer.think_end_id:
            return self._take(token_id, told)
        self._thinking = False
        start = self._spelt + len(self._detokenizer.flush())
        self._spelt = start + len(THINK_END)
        self._waiting.append(_Waiting(start, self._spelt, THINK_END, token_id, told))

    def _take(self, token_id: int, told: TokenLogprobs) -> None:
        if not self._tokenizer.shown_bytes((token_id,)):
            return
        start, text = self._spelt, self._detokenizer.push_one(token_id)
        self._spelt += len(text)
        # a character under way will be the next one, whatever it becomes
        end = self._spelt + self._detokenizer.mid_character
        self._waiting.append(_Waiting(start, end, text, token_id, told))

    def _release(self, *, finished: bool) -> list[dict[str, Any]]:
        entries, waiting, shown = [], self._waiting, self._shown
        while waiting and (waiting[0].end <= shown or (finished and waiting[0].start < shown)):
            token = waiting.popleft()
            if token.end > self._skipped:
                entries.append(self._entry(token))
        return entries

    def _entry(self, token: _Waiting) -> dict[str, Any]:
        bytes_of, told = self._tokenizer.token_bytes, token.told
        data = token.cut(bytes_of(token.token_id), self._skipped, self._shown)
        likeliest = zip(told.top_ids, told.top_logprobs, strict=True)
        named = [named_logprob(bytes_of(token_id), logprob) for token_id, logprob in likeliest]
        return named_logprob(data, told.logprob) | {"top_logprobs": named}
