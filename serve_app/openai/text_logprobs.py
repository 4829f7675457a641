"""TextLogprobs: what the model thought of a text's tokens, in the older of OpenAI's two shapes.

    text           "2 + 2 =" and, behind it, " 4"
    tokens         "2"    " +"   " 2"   " ="   " 4"       one entry per token, EOS too
    token_logprobs null   -3.1   -0.9   -0.2   -0.1       null: it follows nothing
    top_logprobs   null   {" +": -3.1, ...}  ...          the token itself is always among them
    text_offset    0      1      3      5      7          characters of the text before it

Owns the lists and where in the text each token begins. Refuses to know JSON and choices.
"""

import codecs
from typing import Any, NamedTuple

from cluster.request import TokenLogprobs
from cluster.text.detokenizer import Detokenizer
from cluster.text.tokenizer import Tokenizer
from serve_app.openai.logprobs import token_text

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")

Lists = dict[str, list[Any]]


def no_entries() -> Lists:
    """The lists before the first token."""
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


class TextLogprobs:
    """Entries of tokens as they come; `take` what came since the last time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lists = no_entries()

    def add(self, token_id: int, told: TokenLogprobs | None, offset: int) -> None:
        """The next token; `told` is None for one that follows nothing."""
        name = self._name(token_id)
        top: dict[str, float] | None = None
        if told is not None:
            top = {}
            likeliest = zip(told.top_ids, told.top_logprobs, strict=True)
            for other, logprob in (*likeliest, (token_id, told.logprob)):
                top.setdefault(self._name(other), logprob)
        self._lists["tokens"].append(name)
        self._lists["token_logprobs"].append(told and told.logprob)
        self._lists["top_logprobs"].append(top)
        self._lists["text_offset"].append(offset)

    def take(self) -> Lists:
        """The entries since the last call."""
        lists, self._lists = self._lists, no_entries()
        return lists

    def _name(self, token_id: int) -> str:
        return token_text(self._tokenizer.token_bytes(token_id))


class Piece(NamedTuple):
    """A part of a choice's text, and the entries of the tokens in it; None: none are told."""

    text: str
    logprobs: Lists | None


class PromptEcho:
    """A prompt given back: at once, or as the engine tells what its tokens are worth."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: list[int], *, num_unsaid: int, logprobs: bool
    ) -> None:
        """`num_unsaid`: tokens at its beginning that its sender did not write; they have entries,
        but are not part of the text."""
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._num_unsaid = num_unsaid
        self._entries = TextLogprobs(tokenizer) if logprobs else None
        self._decoder = _Utf8Decoder(errors="replace")
        self._next = 0
        self.length = 0
        """Characters given back so far."""

    def first(self) -> Piece:
        """What needs nothing from the engine."""
        if self._entries is None:
            return self._piece([None] * len(self._prompt))
        return self._piece([None])

    def push(self, told: list[TokenLogprobs]) -> Piece:
        """The next tokens, as many as there are entries."""
        return self._piece(told)

    def _piece(self, told: list[TokenLogprobs] | list[None]) -> Piece:
        text = ""
        for one in told:
            token_id = self._prompt[self._next]
            if self._entries is not None:
                self._entries.add(token_id, one, self.length + len(text))
            if self._next >= self._num_unsaid:
                text += self._decoder.decode(self._tokenizer.token_bytes(token_id))
            self._next += 1
        if self._next == len(self._prompt):
            text += self._decoder.decode(b"", final=True)
        self.length += len(text)
        return Piece(text, None if self._entries is None else self._entries.take())


class GeneratedText:
    """What is generated behind a prompt, and what is told of its tokens.

    A character that a prompt left half said is not completed: what the prompt held shows in its
    echo alone.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._entries = TextLogprobs(tokenizer)
        self._spelt = 0

    def entries(self, token_ids: list[int], told: list[TokenLogprobs], num_echoed: int) -> Lists:
        """Of the next tokens; `num_echoed` characters stand before all that is generated."""
        for token_id, one in zip(token_ids, told, strict=True):
            self._entries.add(token_id, one, num_echoed + self._spelt)
            self._spelt += len(self._detokenizer.push_one(token_id))
        return self._entries.take()
