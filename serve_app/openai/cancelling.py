"""The end of a request by its id: what is answered to whoever asked for it, and its documentation.

Owns the object's shape, which is that of OpenAI's deletions. Knows no request.
"""

from typing import Any, Literal

import orjson

from serve_app.openai.openapi import ANYWHERE, STRING, error_responses, object_of

Kind = Literal["chat.completion", "text_completion"]
"""The `object` of what the request would have been answered with."""


def cancelled_body(id: str, kind: Kind) -> bytes:
    return orjson.dumps({"id": id, "object": f"{kind}.cancelled", "cancelled": True})


def cancel_route(kind: Kind, operation_id: str, tag: str) -> dict[str, Any]:
    """Keyword arguments for `FastAPI.post`."""
    cancelled = object_of(
        {
            "id": STRING,
            "object": {"const": f"{kind}.cancelled"},
            "cancelled": {"const": True},
        }
    )
    return {
        "summary": "End a request that waits or runs",
        "description": "Of your own API key, by the id in its first event. It ends with the error "
        "`request_cancelled` and is charged for what it had generated.",
        "operation_id": operation_id,
        "tags": [tag],
        "responses": {
            200: {
                "description": "It was told to end.",
                "content": {"application/json": {"schema": cancelled}},
            },
            **error_responses(401, 403, 404, *ANYWHERE),
        },
        "openapi_extra": {"security": [{"ApiKey": []}]},
    }
