"""From pydantic's findings to one ApiError that names the field and the remedy, never the value.

Owns the wording. Refuses to know which fields exist: it is told their names, so that a name that
a client made up (a key of `metadata`) never comes back as `param`.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from serve_app.openai.errors import (
    ApiError,
    invalid_type,
    invalid_value,
    missing_parameter,
    unsupported_parameter,
)

UNSUPPORTED = "unsupported_parameter"
"""The type of a PydanticCustomError whose message is the remedy; see `errors`."""

_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_BOUNDS = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "finite_number": "must be a finite number",
    "int_parsing_size": "is too large",
    "literal_error": "must be {expected}",
}


def from_validation_error(error: ValidationError, known: frozenset[str]) -> ApiError:
    """The first finding as a 400; `known` holds the names that may appear in `param`."""
    first = error.errors(include_url=False)[0]
    param = field_name(first["loc"], known)
    kind = first["type"]
    if kind == "missing":
        return missing_parameter(param)
    if kind == UNSUPPORTED:
        return unsupported_parameter(param, first["msg"])
    if kind in _EXPECTED:
        return wrong_type(param, _EXPECTED[kind], first["input"])
    if kind == "union_type":
        return wrong_type(param, first["msg"], first["input"])
    return invalid_value(param, f"Invalid value for '{param}': {_problem(first)}.")


def wrong_type(param: str, expected: str, value: Any) -> ApiError:
    """`value` is looked at for its JSON type only."""
    got = _json_type(value)
    return invalid_type(param, f"Invalid type for '{param}': expected {expected}, but got {got}.")


def field_name(loc: Sequence[int | str], known: frozenset[str]) -> str:
    """("messages", 1, "content") as "messages[1].content"; ends before the first unknown name."""
    name = ""
    for part in loc:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part in known:
            name += f".{part}" if name else part
        elif not part.startswith("<"):
            break
    return name or "body"


def _problem(finding: ErrorDetails) -> str:
    wording = _BOUNDS.get(finding["type"])
    if wording is not None:
        bounds = finding.get("ctx", {}).items()
        return wording.format(**{name: _plain(bound) for name, bound in bounds})
    return finding["msg"] if finding["type"] == "invalid_value" else "is not valid"


def _plain(bound: Any) -> Any:
    """2.0 as people write it."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {int: "an integer", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")
