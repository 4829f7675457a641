"""RowGrammars: which ids the rows with a grammar may draw, at each position of a step.

Owns every such row's place in its grammar. Every rank has its own and finds the same: rows, tokens
and masks are the same on all ranks, so no mask ever travels, and a step may be planned before the
tokens of the one before it are known. Knows no logits and no grammar's words.

    prompt ... <think> | t t t </think> | \\n { " a " : 1 } EOS
    may be drawn         all but EOS      what the grammar says

A draft is followed as if it were drawn: the position behind it has the mask that it would have
then. So a draft stands only where it would have been drawn, with a grammar as without.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from cluster.batch import SchedulerOutput, StartedRow
from cluster.thinking import Thinking
from cluster.worker.allowed import Allowed


class Matcher(Protocol):
    """What a row needs of `cluster.text.grammar.Matcher`. Methods raise ValueError."""

    def push(self, token_id: int, /) -> None: ...

    def masks(self, drafts: Sequence[int], /) -> list[bytes]: ...


class Prepared(Protocol):
    """A grammar that is compiled, or soon will be."""

    def matcher(self) -> Matcher:
        """Waits until it is compiled. Raises ValueError."""


class Grammars(Protocol):
    """What a rank needs of `cluster.text.grammar_book.GrammarBook`."""

    def prepare(self, source: str, /) -> Prepared: ...

    def compile(self, source: str, done: Callable[[], None], /) -> None: ...


class RowGrammars:
    """Follows the rows of a batch."""

    def __init__(
        self, grammars: Grammars | None, vocab_size: int, eos_token_ids: Iterable[int]
    ) -> None:
        """`grammars`: None where there is no tokenizer; rows with a grammar fail then."""
        self._grammars = grammars
        self._num_bytes = -(-vocab_size // 8)
        unended = np.full(self._num_bytes, 255, np.uint8)
        for token_id in eos_token_ids:
            unended[token_id >> 3] &= ~np.uint8(1 << (token_id & 7))
        self._unended = unended.tobytes()
        self._rows: dict[int, _Row] = {}

    def apply(self, frame: SchedulerOutput) -> None:
        """Rows that left, then rows that came."""
        for row in frame.released:
            self._rows.pop(row, None)
        for started in frame.started:
            if started.params.grammar is not None:
                self._rows[started.row] = _Row(started, self._grammars)

    def broken(self, row: int) -> bool:
        """Whether the row cannot go on: no id was allowed to it, so it drew none."""
        return row in self._rows and self._rows[row].broken

    def record(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
        """What rows drew."""
        if not self._rows:
            return
        for row, drawn in zip(rows, token_ids, strict=True):
            if row in self._rows:
                self._rows[row].push(drawn)

    def allowed(self, rows: Sequence[int], drafts: Sequence[Sequence[int]]) -> Allowed | None:
        """Of sampling positions: a row's next token, then those behind each of its drafts, row
        after row. None where no position is limited."""
        if not self._rows:
            return None
        positions: list[int] = []
        masks: list[bytes] = []
        first = 0
        for row, draft in zip(rows, drafts, strict=True):
            if row in self._rows:
                for offset, mask in enumerate(self._rows[row].masks(draft)):
                    positions.append(first + offset)
                    limits = self._unended if mask is None else mask[: self._num_bytes]
                    masks.append(limits.ljust(self._num_bytes, b"\0"))
            first += 1 + len(draft)
        if not positions:
            return None
        bits = np.frombuffer(bytearray().join(masks), np.uint8)
        return Allowed(np.array(positions), bits.reshape(-1, self._num_bytes))


class _Row:
    """One row's thoughts, and then its place in its grammar."""

    __slots__ = ("_matcher", "_prepared", "_thinking", "broken")

    def __init__(self, started: StartedRow, grammars: Grammars | None) -> None:
        assert started.params.grammar is not None
        self._prepared = grammars.prepare(started.params.grammar) if grammars is not None else None
        self._matcher: Matcher | None = None
        self._thinking = Thinking(started.params.thinking)
        self.broken = grammars is None
        self.push(started.token_ids[started.num_prompt_tokens :])

    def push(self, token_ids: Iterable[int]) -> None:
        """The output's next ids."""
        for token_id in token_ids:
            if not self._thinking.answering:
                self._thinking.push(token_id)
            elif not self.broken:
                try:
                    self._answer().push(token_id)
                except ValueError:
                    self.broken = True

    def masks(self, draft: Sequence[int]) -> list[bytes | None]:
        """Of the next position and those behind each draft, as far as they are limited: None
        among the thoughts, no bits at all if the row is broken."""
        ahead = self._thinking.ahead(draft)
        thoughts = sum(not token.answering for token in ahead)
        masks: list[bytes | None] = [None] * thoughts
        if thoughts == len(ahead):
            return masks
        if not self.broken:
            try:
                return masks + self._answer().masks(draft[thoughts:])
            except ValueError:
                self.broken = True
        return [*masks, b""]

    def _answer(self) -> Matcher:
        if self._matcher is None:
            assert self._prepared is not None
            self._matcher = self._prepared.matcher()
        return self._matcher
