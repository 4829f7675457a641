"""Formats of strings: what `format` means where the grammar's own reading is wider than people's.

Owns patterns of dates and times that every parser takes, and which formats hold nobody to
anything. Refuses to know the formats that llguidance reads as everybody does.

RFC 3339 allows a 60th second and small letters, and llguidance a 29th of February in every year;
the parsers of most languages refuse these, so an answer does not have them.
"""

from typing import Any

_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_HOURS = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = f"{_HOURS}:[0-5][0-9](?:\\.[0-9]{{1,6}})?(?:Z|[+-]{_HOURS})"
_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}

_DEFINED = frozenset(
    {
        *("date", "date-time", "duration", "time"),
        *("email", "hostname", "idn-email", "idn-hostname", "ipv4", "ipv6"),
        *("iri", "iri-reference", "uri", "uri-reference", "uri-template", "uuid"),
        *("json-pointer", "regex", "relative-json-pointer"),
    }
)
"""Of JSON Schema, drafts 6 to 2020-12. Other words, such as int32, password and binary, are notes
to a reader and rule nothing out."""


def held_formats(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose format, if it has one, is one that values can be held to."""
    name = schema.get("format")
    if not isinstance(name, str):
        return schema
    if name not in _DEFINED:
        return {key: value for key, value in schema.items() if key != "format"}
    if name not in _PATTERNS or "pattern" in schema:
        return schema
    kept = {key: value for key, value in schema.items() if key != "format"}
    return kept | {"pattern": _PATTERNS[name]}
