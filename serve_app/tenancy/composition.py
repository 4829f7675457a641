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

Each part stands in a function around those that follow: Lua looks for what a closure captures among
all that has been captured of the function around it, but takes what is farther out by number. No
function may capture more than 60 names, for itself and those in it; ADMIT's innermost has 51.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources.abc import Traversable
from itertools import chain
from typing import NamedTuple

from serve_app.tenancy.records import layout_of

NAME = re.compile(r"[A-Za-z_]\w*")
DEFINES = re.compile(r"local (?:function (\w+)|([\w, ]+))")
CONSTANTS = re.compile(r"local ([A-Z_]+(?:, [A-Z_]+)*) = (\d+(?:, \d+)*)")
TOKENS = re.compile(r"'[^']*'|\.?[A-Za-z_]\w*")
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
    first, _, _ = (folder / f"{name}.lua").read_text().partition("\n")
    files = [*first.removeprefix("-- uses:").split(), name]
    texts = [[*_statements((folder / f"{file}.lua").read_text())] for file in files]
    common, *parts, body = _with_constants(texts)
    offered = [*chain.from_iterable(parts), *(s for s in body if s.is_function)]
    kept = _needed(offered, set().union(*(s.names for s in body if not s.is_function)))
    stays = [*kept, *(s for s in body if not s.is_function)]
    inside = []
    for part in (*parts, body):
        inside += ["return (function()", *(_written(s, offered, kept) for s in part if s in stays)]
    outside = _needed(common, set(NAME.findall("\n".join(inside))))
    ends = ["end)()"] * len(files[1:])
    return "\n".join([*(s.text for s in outside), *inside, *ends])


def _with_constants(parts: Iterable[list[Statement]]) -> list[list[Statement]]:
    """Numbers in capitals, written out where they are used: each user would capture a name."""
    parts, values = [*parts], dict[str, str]()
    for statement in chain.from_iterable(parts):
        if found := CONSTANTS.fullmatch(statement.text):
            values |= zip(found[1].split(", "), found[2].split(", "), strict=True)

    def written_out(statement: Statement) -> Statement:
        text = TOKENS.sub(lambda token: values.get(token[0], token[0]), statement.text)
        return statement._replace(text=text)

    return [[written_out(s) for s in part if not CONSTANTS.fullmatch(s.text)] for part in parts]


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
