"""The few words that the API reference is written in: types, objects, references, errors.

Owns how a shape is put as JSON schema and what each error status means. Knows no route.
"""

from typing import Any

REF = "#/components/schemas/"
INTEGER: dict[str, Any] = {"type": "integer"}
STRING: dict[str, Any] = {"type": "string"}
STRING_OR_NULL: dict[str, Any] = {"type": ["string", "null"]}

_ERROR_MEANINGS = {
    400: "The request is wrong; `param` names the field.",
    401: "No API key, or one that is wrong, expired or revoked.",
    403: "The API key may not do that.",
    404: "Unknown model (`model_not_found`), unknown id or unknown URL.",
    405: "The URL does not answer that method; see the Allow header.",
    408: "The body did not arrive in time, or the time that the request gave itself is over.",
    409: "The request of this Idempotency-Key still runs, or was cancelled by its owner; or this "
    "ingress has no tenants file that it may change.",
    413: "The request body is too large.",
    415: "The request body is not plain JSON.",
    422: "The Idempotency-Key was used for another body.",
    429: "`rate_limit_exceeded` or `overloaded`: wait as long as Retry-After says. "
    "`insufficient_quota`: a budget is used up until its day or month ends.",
    431: "URL and headers are too large.",
    500: "The server or the model failed this request.",
    503: "No model replica can answer now; wait as long as Retry-After says.",
    504: "The server's time limit for one request was reached.",
}
ANYWHERE = (405, 408, 413, 415, 431, 500, 503)
"""What any route may answer before its handler is asked, or where that fails."""


def object_of(properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object whose properties are there unless named as optional."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of error statuses, for a route's `responses`."""
    content = {"application/json": {"schema": {"$ref": REF + "Error"}}}
    return {
        status: {"description": _ERROR_MEANINGS[status], "content": content} for status in statuses
    }
