"""Records: strings in Redis with a fixed list of fields, and the Lua that reads and writes them.

    record   := count:uint8 field*      count: how many fields
    field    := double, little-endian | text '\\0'

A script declares one as `local read_x, pack_x = record [[ name=s other … ]]` (`=s`: text without
NUL; else a number). Reading makes a table of named fields, in half the time of MessagePack with
names, and ADMIT and SETTLE read three each. Fields are only ever added, at the end: who reads a
record of fewer fields finds the others 0 or empty; of more, those that it knows, and drops the
others when it writes. What is not there has no fields. Any other change is another format
(store.py's prefix).
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

DECLARED = re.compile(r"local (\w+), (\w+) = record \[\[(.*?)\]\]", re.DOTALL)
MOST = 200
"""Fields; as many local names as a function of Lua may have."""


class Layout(NamedTuple):
    """One kind of record."""

    reader: str
    packer: str
    fields: tuple[str, ...]
    texts: frozenset[str]

    def lua(self) -> Iterator[str]:
        """The definitions of its reader and its packer, a statement each."""
        kinds = "".join("s" if field in self.texts else "d" for field in self.fields)
        names, count = ", ".join(self.fields), len(self.fields)
        table = ", ".join(f"{field} = {field}" for field in self.fields)
        yield f"""local function {self.reader}(packed)
  packed = packed or '\\0'
  local held = string.byte(packed)
  if held < {count} then packed = packed .. string.rep('\\0', 8 * ({count} - held)) end
  local {names} = struct.unpack('<{kinds}', packed, 2)
  return {{{table}}}
end"""
        values = ", ".join(f"r.{field}" for field in self.fields)
        yield f"""local function {self.packer}(r)
  return struct.pack('<B{kinds}', {count}, {values})
end"""


def layout_of(statement: str) -> Layout | None:
    """What it declares, or None where it declares no record."""
    found = DECLARED.match(statement)
    if found is None:
        return None
    words = [word.partition("=") for word in found[3].split()]
    fields = tuple(name for name, _, _ in words)
    if len(fields) > MOST:
        raise ValueError(f"{found[1]}: {len(fields)} fields, {MOST} at most")
    return Layout(found[1], found[2], fields, frozenset(name for name, _, kind in words if kind))
