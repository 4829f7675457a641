"""ToolReader: finds the calls in an answer that was held to the grammar of `tool_calls`.

Owns what of the answer's end may become a call and is not shown yet. Refuses to know tokens and how
calls are shown. The concatenated pieces do not depend on how the text was cut.

    TEXT --<tool_call>--> NAME --name--> ARGUMENTS --their object closes--> TAIL --> TEXT
"""

import enum
from typing import NamedTuple

from cluster.text.tool_calls import (
    ARGUMENTS_END,
    ARGUMENTS_START,
    CALL_END,
    CALL_START,
    NAME_START,
)


class AnswerPiece(NamedTuple):
    """Text to show, the beginning of a call, or more of its arguments."""

    text: str = ""
    call: int | None = None
    """Which call this is of."""
    name: str | None = None
    """At the beginning of a call."""
    arguments: str = ""


class _Place(enum.Enum):
    TEXT = enum.auto()
    NAME = enum.auto()
    ARGUMENTS = enum.auto()
    TAIL = enum.auto()


class ToolReader:
    """Reads one answer, in any pieces."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._place = _Place.TEXT
        self._held = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def within_a_call(self) -> bool:
        """Whether the last call's arguments, or its name, are not complete."""
        return self._place in (_Place.NAME, _Place.ARGUMENTS)

    def push(self, text: str) -> list[AnswerPiece]:
        """What the next text adds."""
        pieces: list[AnswerPiece] = []
        self._held += text
        while self._held and (step := self._step()) is not None:
            pieces += step
        return pieces

    def flush(self) -> list[AnswerPiece]:
        """What the end of the answer shows to be text after all; half a call stays half."""
        held, self._held = self._held, ""
        return [AnswerPiece(held)] if held and self._place is _Place.TEXT else []

    def _step(self) -> list[AnswerPiece] | None:
        """Reads some of what is held; None where more of it is needed."""
        if self._place is _Place.TEXT:
            return self._text()
        if self._place is _Place.NAME:
            return self._name()
        if self._place is _Place.ARGUMENTS:
            return self._arguments()
        tail = ARGUMENTS_END + CALL_END
        if len(self._held) < len(tail):
            return None
        self._held, self._place = self._held[len(tail) :], _Place.TEXT
        return []

    def _text(self) -> list[AnswerPiece] | None:
        before, marker, behind = self._held.partition(CALL_START)
        if marker:
            self._held, self._place = behind, _Place.NAME
            shown = before.rstrip()
        else:
            shown = before[: len(before) - _may_begin_a_call(before)]
            if not shown:
                return None
            self._held = before[len(shown) :]
        return [AnswerPiece(shown)] if shown else []

    def _name(self) -> list[AnswerPiece] | None:
        head, found, behind = self._held.partition(ARGUMENTS_START)
        if not found:
            return None
        name = head.removeprefix(NAME_START)
        self._held, self._place = behind, _Place.ARGUMENTS
        self.num_calls += 1
        self._depth, self._in_string = 0, False
        return [AnswerPiece(call=self.num_calls - 1, name=name)]

    def _arguments(self) -> list[AnswerPiece] | None:
        end = self._end_of_object()
        fragment, self._held = self._held[:end], self._held[end:]
        return [AnswerPiece(call=self.num_calls - 1, arguments=fragment)]

    def _end_of_object(self) -> int:
        """How many of the held characters are of the object; all if it does not close in them."""
        for place, character in enumerate(self._held):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                else:
                    self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self._place = _Place.TAIL
                    return place + 1
        return len(self._held)


def _may_begin_a_call(text: str) -> int:
    """How much of a text's end may be the beginning of a call: blanks, then some of its marker."""
    for length in range(min(len(CALL_START) - 1, len(text)), 0, -1):
        if text.endswith(CALL_START[:length]):
            break
    else:
        length = 0
    marker = len(text) - length
    return len(text) - len(text[:marker].rstrip())
