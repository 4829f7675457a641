"""Where schemas stand within a JSON Schema, and how one is made of another.

Owns the keywords that hold schemas. Refuses to know what the others mean.
"""

from collections.abc import Callable
from typing import Any

ONE = ("additionalItems", "additionalProperties", "items")
LISTED = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
NAMED = ("$defs", "definitions", "patternProperties", "properties")

Change = Callable[[dict[str, Any]], dict[str, Any]]


def rewritten(schema: Any, change: Change) -> Any:
    """The schema, changed, and then those within it in the same way; what is none stays as it is.

    `change` must return what is no deeper than what it is given.
    """
    if not isinstance(schema, dict):
        return schema
    own = dict(change(schema))
    for name in ONE:
        if isinstance(own.get(name), dict):
            own[name] = rewritten(own[name], change)
    for name in LISTED:
        if isinstance(listed := own.get(name), list):
            own[name] = [rewritten(one, change) for one in listed]
    for name in NAMED:
        if isinstance(named := own.get(name), dict):
            own[name] = {key: rewritten(one, change) for key, one in named.items()}
    return own
