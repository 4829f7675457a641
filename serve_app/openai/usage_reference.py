"""What the API reference says of the routes that tell usage: texts and shapes as data.

Owns them. Refuses to know the web framework.
"""

from typing import Any

from serve_app.openai.openapi import ANYWHERE, INTEGER, STRING, error_responses, object_of

_DIMENSIONS = {
    "day": {**STRING, "format": "date"},
    "model": STRING,
    "key": {**STRING, "description": "The key's id."},
    "tenant": STRING,
}
_ROW = object_of(
    {
        **_DIMENSIONS,
        "requests": INTEGER,
        "input_tokens": INTEGER,
        "cached_tokens": {**INTEGER, "description": "Among the input."},
        "output_tokens": INTEGER,
        "reasoning_tokens": {**INTEGER, "description": "Among the output."},
        "cost_micros": {**INTEGER, "description": "Millionths of the currency's unit."},
        "cost": {**STRING, "description": "The same as a decimal number."},
        "currency": {"type": ["string", "null"], "description": "Null: the model had no price."},
    },
    optional=tuple(_DIMENSIONS),
)
_REPLY = object_of({"object": {"const": "list"}, "data": {"type": "array", "items": _ROW}})
_ABOUT = (
    "Sums of tokens and cost, a row for each combination of what `group_by` names (it may be "
    "given several times) and each currency. Days are UTC, `start` and `end` among them. A request "
    "counts on the day it was admitted, as soon as it has ended; an aborted one with what it had "
    "produced. `format=csv` gives the same rows as CSV."
)


def usage_route() -> dict[str, Any]:
    """Keyword arguments for `FastAPI.get`."""
    return _route("What your key has used", "getUsage", "usage")


def admin_usage_route() -> dict[str, Any]:
    """Keyword arguments for `FastAPI.get`."""
    return _route("What everybody has used", "adminShowUsage", "admin")


def _route(summary: str, operation: str, scope: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _REPLY}, "text/csv": {"schema": STRING}}
    return {
        "summary": summary,
        "description": f"{_ABOUT} Needs a key with the scope `{scope}`.",
        "operation_id": operation,
        "tags": ["Usage" if scope == "usage" else "Admin"],
        "responses": {
            200: {"description": "Done.", "content": content},
            **error_responses(400, 401, 403, *ANYWHERE),
        },
        "openapi_extra": {"security": [{"ApiKey": []}]},
    }
