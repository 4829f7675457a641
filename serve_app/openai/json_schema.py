"""What a JSON Schema from a client may be, and in which words it is refused.

Owns the limits of size, depth and choices, the keywords that cannot be promised, and the way from a
grammar compiler's report, which quotes the schema, to an error that does not. Refuses to know what
the schema is for.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from cluster.text.schema_parts import LISTED, NAMED, ONE
from serve_app.openai.errors import ApiError, invalid_value

MAX_SCHEMA_BYTES = 64 * 2**10
MAX_DEPTH = 16
"""Schemas within schemas."""
MAX_NESTING = 64
"""JSON objects and arrays within each other, of schemas and of values alike."""
MAX_CHOICES = 1_000
"""Values of all `enum` together."""

_UNSUPPORTED = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)

_TOO_COMPLEX = "It is too complex. Use fewer choices, optional properties and patterns."
_REPORTS = (
    ("not disjoint", "'patternProperties' must not match the same name twice."),
    (
        "oneOf constraints",
        "'oneOf' is supported only where its branches plainly exclude each other, by their types, "
        "values, bounds or required properties. Use 'anyOf'.",
    ),
    (
        "Unknown format",
        "'format' is supported for date-time, date, time, duration, email, hostname, ipv4, ipv6, "
        "uuid and uri only.",
    ),
    (
        "regex",
        "A 'pattern' or a bound of a number is not supported: it may hold no look-around and no "
        "back reference, and bounds must be of moderate size.",
    ),
    (
        "min/maxProperties",
        "'minProperties' and 'maxProperties' are supported only where all properties are required.",
    ),
    ("Unsatisfiable", "No value can satisfy it."),
    ("NoExtension", "No finite value can satisfy it."),
    ("Resource", "'$ref' may refer to the schema itself only, and '$schema' to a known draft."),
    ("Pointer", "A '$ref' refers to something that is not there."),
    ("takes more than", _TOO_COMPLEX),
    ("exceeds", _TOO_COMPLEX),
    ("too ", _TOO_COMPLEX),
    ("row has", _TOO_COMPLEX),
    ("fuel", _TOO_COMPLEX),
    ("limit", _TOO_COMPLEX),
)


def check_schema(schema: Mapping[str, Any], param: str) -> None:
    """Holds a schema against the limits, without compiling it.

    Raises:
        ApiError: 400; it names `param`, and a keyword where one is at fault.
    """
    if _nesting(schema) > MAX_NESTING:
        raise _invalid(param, f"It is nested more than {MAX_DEPTH} levels deep.")
    if len(orjson.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise _invalid(param, f"It is larger than {MAX_SCHEMA_BYTES} bytes.")
    choices = 0
    for part, depth in _parts(schema):
        if depth > MAX_DEPTH:
            raise _invalid(param, f"It is nested more than {MAX_DEPTH} levels deep.")
        if unsupported := sorted(_UNSUPPORTED & part.keys()):
            raise _invalid(param, f"The keyword '{unsupported[0]}' is not supported.")
        values = part.get("enum")
        choices += len(values) if isinstance(values, list) else 0
        if choices > MAX_CHOICES:
            raise _invalid(param, f"Its 'enum' hold more than {MAX_CHOICES} values.")


def refusal(report: str, param: str) -> ApiError:
    """What a grammar compiler reported of a schema, as a client may be told."""
    told = (reason for needle, reason in _REPORTS if needle in report)
    return _invalid(param, next(told, "It is not a valid JSON Schema, or not supported."))


def _nesting(value: Any) -> int:
    """How deep containers lie within each other, as far as that is allowed and one more."""
    level, depth = [value], 0
    while level and depth <= MAX_NESTING:
        containers = [one for one in level if isinstance(one, dict | list)]
        depth += bool(containers)
        level = []
        for one in containers:
            level += one.values() if isinstance(one, dict) else one
    return depth


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], int]]:
    """The schema and those within it, one level deeper each."""
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        part, depth = waiting.pop()
        if not isinstance(part, dict):
            continue
        yield part, depth
        within = [part.get(name) for name in ONE]
        for name in LISTED:
            listed = part.get(name)
            within += listed if isinstance(listed, list) else []
        for name in NAMED:
            named = part.get(name)
            within += named.values() if isinstance(named, dict) else []
        waiting += [(one, depth + 1) for one in within]


def _invalid(param: str, reason: str) -> ApiError:
    return invalid_value(param, f"Invalid schema for '{param}': {reason}")
