"""Composition: whole scripts from the parts that they name.

Owns how a script's text is put together. A script's first line, `-- uses: common meter …`, names
its parts in order; `common` comes first. A part is a list of top-level statements, each of which
begins at the left margin and defines local names; of these a script gets what it needs and nothing
else, without comments: Redis makes every function of a script anew in each call, 0.2 microseconds.

Common names stand outside of a function that holds the rest: Lua looks for what a closure captures
among all that its own function has captured so far, but takes what an outer one has by number.
"""

import re
from collections.abc import Iterable, Iterator
from importlib.resources.abc import Traversable
from itertools import chain

NAME = re.compile(r"[A-Za-z_]\w*")
DEFINES = re.compile(r"local (?:function (\w+)|([\w, ]+))")


def compose(folder: Traversable, name: str) -> str:
    """The text of `<name>.lua` with its parts. Raises FileNotFoundError."""
    body = (folder / f"{name}.lua").read_text()
    uses = body.partition("\n")[0].removeprefix("-- uses:").split()
    common, *parts = [[*_statements((folder / f"{part}.lua").read_text())] for part in uses]
    kept = _needed([*common, *chain.from_iterable(parts)], _statements(body))
    outside = [text for text in common if text in kept]
    inside = [text for part in parts for text in part if text in kept]
    return "\n".join([*outside, "return (function()", *inside, *_statements(body), "end)()"])


def _needed(statements: list[str], body: Iterable[str]) -> set[str]:
    """Those that the body needs, or one of them does; and those that define nothing."""
    kept: set[str] = set()
    wanted = {name for text in body for name in NAME.findall(text)}
    for text in reversed(statements):  # a name is defined before it is used
        defined = _defined(text)
        if not defined or defined & wanted:
            kept.add(text)
            wanted |= set(NAME.findall(text))
    return kept


def _defined(statement: str) -> set[str]:
    found = DEFINES.match(statement)
    if found is None:
        return set()
    function, names = found.groups()
    return {function} if function else set(NAME.findall(names))


def _statements(text: str) -> Iterator[str]:
    """Top-level statements: a line at the left margin and what hangs on it, to its closing line."""
    lines: list[str] = []
    for line in text.splitlines():
        code = line.partition("--")[0].rstrip()
        if not code:
            continue
        continues = code[0] in " })" or code.startswith(("end", "else"))
        if lines and not continues:
            yield "\n".join(lines)
            lines = []
        lines.append(code)
    if lines:
        yield "\n".join(lines)
