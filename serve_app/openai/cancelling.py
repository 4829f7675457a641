"""The end of a request by its id: what is answered to whoever asked for it, and its documentation.

Owns the object's shape, which is that of OpenAI's deletions. Knows no request.
"""

from typing import Any

import orjson

from serve_app.openai.openapi import ANYWHERE, STRING, error_responses, object_of

_CANCELLED = object_of(
    {
        "id": STRING,
        "object": {"const": "chat.completion.cancelled"},
        "cancelled": {"const": True},
    }
)


def cancelled_body(id: str) -> bytes:
    return orjson.dumps({"id": id, "object": "chat.completion.cancelled", "cancelled": True})


def cancel_route() -> dict[str, Any]:
    """Keyword arguments for `FastAPI.post`."""
    return {
        "summary": "End a request that waits or runs",
        "description": "Of your own API key, by the id in its first event. It ends with the error "
        "`request_cancelled` and is charged for what it had generated.",
        "operation_id": "cancelChatCompletion",
        "tags": ["Chat"],
        "responses": {
            200: {
                "description": "It was told to end.",
                "content": {"application/json": {"schema": _CANCELLED}},
            },
            **error_responses(401, 403, 404, *ANYWHERE),
        },
        "openapi_extra": {"security": [{"ApiKey": []}]},
    }
