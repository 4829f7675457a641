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
    for depth, parts in enumerate(_levels(schema), start=1):
        if depth > MAX_DEPTH:
            raise _invalid(param, f"It is nested more than {MAX_DEPTH} levels deep.")
        for part in parts:
            if not _UNSUPPORTED.isdisjoint(part):
                keyword = min(_UNSUPPORTED.intersection(part))
                raise _invalid(param, f"The keyword '{keyword}' is not supported.")
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
    level, depth = _containers([value]), 0
    while level and depth <= MAX_NESTING:
        depth += 1
        within: list[Any] = []
        for one in level:
            within += one.values() if type(one) is dict else one
        level = _containers(within)
    return depth


def _containers(values: list[Any]) -> list[Any]:
    return [one for one in values if type(one) is dict or type(one) is list]


def _levels(schema: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """The schema, those within it, those within these, and so on."""
    level: list[Any] = [schema]
    while level:
        yield level
        within: list[Any] = []
        for part in level:
            for name, value in part.items():
                if type(value) is list:
                    within += value if name in LISTED else ()
                elif name in ONE:
                    within.append(value)
                elif type(value) is dict and name in NAMED:
                    within += value.values()
        level = [one for one in within if type(one) is dict]


def _invalid(param: str, reason: str) -> ApiError:
    return invalid_value(param, f"Invalid schema for '{param}': {reason}")
