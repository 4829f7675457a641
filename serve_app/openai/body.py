"""The door for request bodies: bytes from anybody in, the fields of one JSON object out.

Owns what all requests have in common: types are strict (true and "1" are not 1),
a null field is a field left out, unknown fields are kept to be named as ignored. Refuses to know
which fields there are.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Discriminator, model_validator

from serve_app.openai.errors import invalid_json, invalid_value

MAX_IGNORED_NAMES = 20
_MAX_NAME_CHARS = 64
_NOT_TOKEN = re.compile(r"[^A-Za-z0-9_.-]")


class Strict(BaseModel):
    """What is common to all parts of a request."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Numbered(Strict):
    """A part that has integers: 100.0 is one too, as JSON Schema has it, because some languages
    write all their numbers so."""

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        numbers = ((name, value) for name, value in fields.items() if isinstance(value, float))
        whole = {name: int(value) for name, value in numbers if value.is_integer()}
        return fields | whole if whole else fields


def _string_or_array(value: Any) -> str | None:
    return "<string>" if isinstance(value, str) else "<array>" if isinstance(value, list) else None


STRING_OR_ARRAY = Discriminator(
    _string_or_array, custom_error_type="union_type", custom_error_message="a string or an array"
)
"""For a union whose members are tagged "<string>" and "<array>"."""


def json_object(body: bytes) -> dict[str, Any]:
    """The non-null fields of a body.

    Raises:
        ApiError: it is not one JSON object.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise invalid_json() from None
    if not isinstance(fields, dict):
        raise invalid_json()
    return {name: value for name, value in fields.items() if value is not None}


def at_most(param: str, count: int, limit: int, noun: str) -> None:
    """Raises ApiError when there are more: counted before anything is looked at, because a
    refusal of a flood must be cheap."""
    if count > limit:
        raise invalid_value(
            param, f"Invalid value for '{param}': must have at most {limit} {noun}."
        )


def unknown_fields(part: Strict | None, prefix: str = "") -> Iterator[str]:
    """Names of what a part of a request held beside its fields, each with the prefix."""
    extra = part.model_extra if part is not None else None
    return (f"{prefix}{name}" for name, value in (extra or {}).items() if value is not None)


def header_names(names: Iterable[str]) -> tuple[str, ...]:
    """For x-deeprequest-ignored: each name once, in safe characters, at most MAX_IGNORED_NAMES."""
    safe: dict[str, None] = {}
    for name in names:
        safe[_NOT_TOKEN.sub("_", name[:_MAX_NAME_CHARS]) or "_"] = None
        if len(safe) == MAX_IGNORED_NAMES:
            break
    return tuple(safe)
