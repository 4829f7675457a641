"""Composition: whole scripts from the parts that they name.

Owns how a script's text is put together. A script's first line, `-- uses: common meter …`, names
its parts in order; `common` comes first. A part is a list of top-level statements, each of which
begins at the left margin and defines local names: functions, and values that nobody changes but
those functions for themselves. Of these a script gets what it needs and nothing else, without
comments.

Redis makes every function of a script anew in each call, which took a fourth of ADMIT's time. So a
function whose first line ends in `-- seldom` is a room: what nobody but seldom functions needs is
defined inside of it, when it is entered, once for each room that needs it.

    local function f(x)  -- seldom          local function f(...)
      return g(x)                             local function g(y) … end
    end                                       return (function(x) return g(x) end)(...)
                                            end

Common names stand outside of a function that holds the rest: Lua looks for what a closure captures
among all that its own function has captured so far, but takes what an outer one has by number.
"""

import re
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable
from itertools import chain
from typing import NamedTuple

from serve_app.tenancy.records import layout_of

NAME = re.compile(r"[A-Za-z_]\w*")
DEFINES = re.compile(r"local (?:function (\w+)|([\w, ]+))")
SELDOM = "-- seldom"


class Statement(NamedTuple):
    """What begins at the left margin, without comments."""

    text: str
    seldom: bool

    @property
    def names(self) -> set[str]:
        return set(NAME.findall(self.text))

    @property
    def defined(self) -> set[str]:
        found = DEFINES.match(self.text)
        if found is None:
            return set()
        function, names = found.groups()
        return {function} if function else set(NAME.findall(names))

    @property
    def is_function(self) -> bool:
        return self.text.startswith("local function ")


def compose(folder: Traversable, name: str) -> str:
    """The text of `<name>.lua` with its parts. Raises FileNotFoundError."""
    own = (folder / f"{name}.lua").read_text()
    uses = own.partition("\n")[0].removeprefix("-- uses:").split()
    common, *parts = [[*_statements((folder / f"{part}.lua").read_text())] for part in uses]
    body = [*_statements(own)]
    offered = [*chain.from_iterable(parts), *(s for s in body if s.is_function)]
    wanted = set().union(*(s.names for s in body if not s.is_function))
    kept = _needed(offered, wanted)
    inside = [*chain.from_iterable(parts), *body]
    lines = [_written(s, offered, kept) for s in inside if s in kept or s not in offered]
    everything = set().union(*(NAME.findall(line) for line in lines))
    outside = [s.text for s in common if s in _needed(common, everything)]
    return "\n".join([*outside, "return (function()", *lines, "end)()"])


def _needed(offered: Sequence[Statement], wanted: set[str]) -> list[Statement]:
    """What the wanted names need, seldom functions without what they need themselves; and what
    defines nothing."""
    kept, wanted = [], set(wanted)
    for statement in reversed(offered):  # a name is defined before it is used
        if not statement.defined or statement.defined & wanted:
            kept.append(statement)
            if not statement.seldom:
                wanted |= statement.names
    return kept[::-1]


def _written(statement: Statement, offered: Sequence[Statement], around: list[Statement]) -> str:
    """The statement's text; with a room's own definitions, of those offered before it and not yet
    made around it."""
    if not statement.seldom:
        return statement.text
    before = offered[: offered.index(statement)]
    hidden = [other for other in before if other not in around and other.defined]
    own = _needed(hidden, statement.names)
    if not own:
        return statement.text
    (name,) = statement.defined
    lines = [_written(other, before, [*around, *own]) for other in own]
    code = statement.text.replace(f"local function {name}", "function", 1)
    return "\n".join([f"local function {name}(...)", *lines, f"return ({code})(...)", "end"])


def _statements(text: str) -> Iterator[Statement]:
    """Top-level statements, with the functions that a declaration of a record stands for."""
    for statement in _as_written(text):
        layout = layout_of(statement.text)
        if layout is None:
            yield statement
        else:
            yield from (Statement(lua, seldom=False) for lua in layout.lua())


def _as_written(text: str) -> Iterator[Statement]:
    """A line at the left margin and what hangs on it, to its closing line."""
    lines: list[str] = []
    seldom = False
    for line in text.splitlines():
        code = line.partition("--")[0].rstrip()
        if not code:
            continue
        continues = code[0] in " })]" or code.startswith(("end", "else"))
        if lines and not continues:
            yield Statement("\n".join(lines), seldom)
            lines = []
        if not lines:
            seldom = line.endswith(SELDOM)
        lines.append(code)
    if lines:
        yield Statement("\n".join(lines), seldom)
