"""JSON as a grammar: sources for `grammar` whose answers are JSON values of a schema.

Owns how the JSON may be laid out, and that a schema is narrowed where answers can be held to less
than it says. Refuses to know what a schema may hold: llguidance refuses what it cannot hold an
answer to.

Blanks are bounded: one space, or a line break and an indentation. A model that may write as many
as it likes sometimes writes nothing else.
"""

import json
from collections.abc import Mapping
from typing import Any

from cluster.text.one_of import exclusive
from cluster.text.schema_formats import held_formats
from cluster.text.schema_parts import rewritten

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}

_OPTIONS = "x-guidance"
_LAYOUT = {"whitespace_pattern": r"( |\n {0,24})"}


def json_answer(schema: Mapping[str, Any]) -> str:
    """An answer that is one value of the schema; line breaks may stand before it.

    R1 puts some between its thoughts and its answer.
    """
    return f"start: /\\n{{0,2}}/ answer\nanswer: {json_rule(schema)}\n"


def json_rule(schema: Mapping[str, Any]) -> str:
    """The body of a Lark rule for a value of the schema, with our layout instead of its own."""
    own = {name: value for name, value in schema.items() if name != _OPTIONS} | {_OPTIONS: _LAYOUT}
    text = _compact(own)
    if '"oneOf"' in text or '"format"' in text:
        text = _compact(rewritten(exclusive(own), held_formats))
    return f"%json {text}"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
