from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cluster.batch import SchedulerOutput, StartedRow
from cluster.request import SamplingParams, ThinkingRule
from cluster.worker.row_grammars import Grammars, RowGrammars

THINK_END, EOS, VOCAB = 15, 14, 16
ALL_BUT_THE_END = set(range(VOCAB)) - {EOS}


class Counting:
    """An answer that counts up from 1, ends after 5, and breaks at 13."""

    def __init__(self) -> None:
        self.next = 1

    def push(self, token_id: int) -> None:
        if token_id not in (self.next, EOS):
            raise ValueError("not the next number")
        self.next = 0 if token_id == EOS else token_id + 1

    def masks(self, drafts: Sequence[int]) -> list[bytes]:
        masks: list[bytes] = []
        number = self.next
        if number == 13:
            raise ValueError("too complex")
        for draft in [*drafts, None]:
            if not number:
                break
            masks.append((1 << (number if number <= 5 else EOS)).to_bytes(4, "little"))
            if draft != number:
                break
            number += 1
        return masks


class Source:
    """Knows how many times each grammar was asked for."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.needed: list[str] = []

    def prepare(self, source: str) -> "Asked":
        self.prepared.append(source)
        return Asked(self, source)

    def compile(self, source: str, done: Callable[[], None]) -> None:
        done()


class Asked(NamedTuple):
    """A grammar of a source."""

    source: Source
    name: str

    def matcher(self) -> Counting:
        self.source.needed.append(self.name)
        if self.name == "bad":
            raise ValueError("cannot be compiled")
        return Counting()


def rows_over(grammars: Grammars | None) -> RowGrammars:
    return RowGrammars(grammars, VOCAB, [EOS])


def started(
    row: int, output: Sequence[int] = (), thinks: bool = False, grammar: str | None = "count"
) -> StartedRow:
    rule = ThinkingRule(THINK_END) if thinks else None
    params = SamplingParams(grammar=grammar, thinking=rule)
    return StartedRow(row, [9, 9, *output], 2, [1], params)


def begin(rows: RowGrammars, *begun: StartedRow, released: Sequence[int] = ()) -> None:
    rows.apply(SchedulerOutput(1, list(released), list(begun), [], []))


def allowed(
    rows: RowGrammars, asked: list[int], drafts: list[list[int]] | None = None
) -> dict[int, set[int]]:
    """By position, the ids that may be drawn there; positions without limits are left out."""
    some = rows.allowed(asked, drafts or [[] for _ in asked])
    if some is None:
        return {}
    bits = np.unpackbits(some.bits, axis=1, bitorder="little")
    return {
        position: set(np.flatnonzero(row).tolist())
        for position, row in zip(some.positions.tolist(), bits, strict=True)
    }


def test_an_answer_follows_its_grammar_from_the_first_token() -> None:
    rows = rows_over(Source())
    begin(rows, started(3))
    assert allowed(rows, [3]) == {0: {1}}
    rows.record([3], [[1, 2]])
    assert allowed(rows, [3]) == {0: {3}}
    rows.record([3], [[3, 4, 5]])
    assert allowed(rows, [3]) == {0: {EOS}}
    rows.record([3], [[EOS]])
    assert allowed(rows, [3]) == {}


def test_thoughts_are_free_but_cannot_end_the_output() -> None:
    source = Source()
    rows = rows_over(source)
    begin(rows, started(0, thinks=True))
    assert allowed(rows, [0]) == {0: ALL_BUT_THE_END}
    rows.record([0], [[7, 7]])
    assert allowed(rows, [0]) == {0: ALL_BUT_THE_END}
    assert (source.prepared, source.needed) == (["count"], [])
    rows.record([0], [[THINK_END]])
    assert allowed(rows, [0]) == {0: {1}}


def test_positions_behind_drafts_have_the_masks_they_would_have() -> None:
    rows = rows_over(Source())
    begin(rows, started(0, thinks=True), started(1), started(2, grammar=None))
    begun = [[7, THINK_END, 1, 2, 9, 9], [1, 9, 3], [4, 4]]
    thoughts = {0: ALL_BUT_THE_END, 1: ALL_BUT_THE_END}
    want = {**thoughts, 2: {1}, 3: {2}, 4: {3}, 7: {1}, 8: {2}}
    assert allowed(rows, [0, 1, 2], begun) == want
    assert allowed(rows, [2, 1, 0], [begun[2], begun[1], []]) == {
        3: {1},
        4: {2},
        7: ALL_BUT_THE_END,
    }


def test_a_row_that_comes_back_goes_on_where_it_was() -> None:
    rows = rows_over(Source())
    begin(rows, started(5, [7, THINK_END, 1, 2], thinks=True))
    assert allowed(rows, [5]) == {0: {3}}
    begin(rows, started(5, [7], thinks=True), released=[5])
    assert allowed(rows, [5]) == {0: ALL_BUT_THE_END}


def test_a_row_s_next_request_inherits_nothing() -> None:
    rows = rows_over(Source())
    begin(rows, started(1))
    begin(rows, started(1, grammar=None), released=[1])
    assert allowed(rows, [1]) == {}


def test_a_row_that_cannot_go_on_is_allowed_nothing() -> None:
    for row in (started(0, grammar="bad"), started(0, [4]), started(0, range(1, 13))):
        rows = rows_over(Source())
        begin(rows, started(1), row)
        assert allowed(rows, [1, 0], [[1], [1]]) == {0: {1}, 1: {2}, 2: set()}
        assert rows.broken(0)
        assert not rows.broken(1)
        rows.record([1, 0], [[1], []])
        assert allowed(rows, [0]) == {0: set()}


def test_without_a_tokenizer_no_row_with_a_grammar_can_go_on() -> None:
    rows = rows_over(None)
    begin(rows, started(0), started(1, grammar=None))
    assert allowed(rows, [1, 0]) == {1: set()}
    assert rows.broken(0)
