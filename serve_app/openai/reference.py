"""What the API reference says of the chat route: schemas, examples, answers and errors as data.

Owns the texts and shapes that /openapi.json shows. Refuses to know the web framework. The request's
schema is taken from ChatCompletionRequest, so that it cannot drift from what is checked.
"""

from typing import Any

from serve_app.openai.schema import ChatCompletionRequest
from serve_app.openai.unsupported import UNSUPPORTED_PARAMETERS

_REF = "#/components/schemas/"
_INTEGER: dict[str, Any] = {"type": "integer"}
_STRING: dict[str, Any] = {"type": "string"}
_STRING_OR_NULL: dict[str, Any] = {"type": ["string", "null"]}

STRAWBERRY = [
    {"role": "system", "content": "You are a helpful assistant that thinks step by step."},
    {"role": "user", "content": "How many r's are in the word 'strawberry'?"},
]

_ERROR_MEANINGS = {
    400: "The request is wrong; `param` names the field.",
    401: "No API key, or one that is wrong, expired or revoked.",
    403: "The API key may not do that.",
    404: "Unknown model (`model_not_found`) or unknown URL.",
    405: "The URL does not answer that method; see the Allow header.",
    408: "The request body did not arrive in time.",
    413: "The request body is too large.",
    415: "The request body is not plain JSON.",
    429: "`rate_limit_exceeded` or `overloaded`: wait as long as Retry-After says.",
    431: "URL and headers are too large.",
    500: "The server or the model failed this request.",
    503: "No model replica can answer now; wait as long as Retry-After says.",
    504: "The server's time limit for one request was reached.",
}


def _object(properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


_REASONING = {
    "reasoning_content": {**_STRING, "description": "The thoughts, with reasoning_format split."},
    "reasoning": {**_STRING, "description": "The same text under its other usual name."},
}
_FINISH_REASON = {
    "type": ["string", "null"],
    "enum": ["stop", "length", None],
    "description": "length: max_tokens was reached, perhaps before there was an answer.",
}
_STOP_REASON = {
    "type": ["string", "integer", "null"],
    "description": "The stop string or stop token id that ended the answer.",
}
_HEAD = {
    "id": {**_STRING, "examples": ["chatcmpl-123456789"]},
    "created": {**_INTEGER, "description": "Unix time in seconds."},
    "model": _STRING,
    "service_tier": _STRING,
    "system_fingerprint": {**_STRING, "description": "Changes with weights and configuration."},
}
_USAGE = _object(
    {
        "prompt_tokens": _INTEGER,
        "completion_tokens": {**_INTEGER, "description": "Thoughts and answer together."},
        "total_tokens": _INTEGER,
        "prompt_tokens_details": _object({"cached_tokens": _INTEGER}),
        "completion_tokens_details": _object(
            {
                "reasoning_tokens": _INTEGER,
                "accepted_prediction_tokens": {
                    **_INTEGER,
                    "description": "Tokens of `prediction` that the output repeated.",
                },
                "rejected_prediction_tokens": {
                    **_INTEGER,
                    "description": "Tokens of `prediction` that it did not; they cost nothing.",
                },
            }
        ),
    }
)
_MESSAGE = _object(
    {
        "role": {"const": "assistant"},
        "content": {
            **_STRING,
            "description": "By default the thoughts in <think>...</think>, then the answer.",
        },
        **_REASONING,
        "refusal": {"type": "null"},
    },
    optional=tuple(_REASONING),
)
_CHOICE = _object(
    {
        "index": _INTEGER,
        "message": _MESSAGE,
        "logprobs": {"type": "null"},
        "finish_reason": _FINISH_REASON,
        "stop_reason": _STOP_REASON,
    }
)
_DELTA = _object({"role": _STRING, "content": _STRING, **_REASONING}) | {"required": []}
_CHUNK_CHOICE = _object(
    {
        "index": _INTEGER,
        "delta": _DELTA,
        "logprobs": {"type": "null"},
        "finish_reason": _FINISH_REASON,
        "stop_reason": _STOP_REASON,
    },
    optional=("stop_reason",),
)
_METADATA = {"type": "object", "additionalProperties": _STRING}
_ERROR = _object(
    {
        "error": _object(
            {
                "message": _STRING,
                "type": _STRING,
                "param": {**_STRING_OR_NULL, "description": "The field at fault."},
                "code": _STRING_OR_NULL,
            }
        )
    }
)
_STREAM_TEXT = """Server-sent events. Each `data:` line holds a chat.completion.chunk: first one \
with the role, then the text, last one with the finish_reason. A stream that succeeds ends with \
`data: [DONE]`; one that fails ends with `data: {"error": {...}}` and without it. Lines that start \
with a colon are keep-alives."""


def schemas() -> dict[str, Any]:
    """Components by name; references point into `#/components/schemas/`."""
    request = ChatCompletionRequest.model_json_schema(ref_template=_REF + "{model}")
    parts: dict[str, Any] = request.pop("$defs", {})
    request["description"] = (
        f"{request.get('description', '')} Fields that are not listed here are accepted without "
        "effect and named in the response header x-deeprequest-ignored. Refused, unless they ask "
        f"for nothing: {', '.join(UNSUPPORTED_PARAMETERS)}."
    )
    return {
        **parts,
        "ChatCompletionRequest": request,
        "ChatCompletion": _object(
            {
                **_HEAD,
                "object": {"const": "chat.completion"},
                "choices": {"type": "array", "items": _CHOICE},
                "usage": {"$ref": _REF + "Usage"},
                "metadata": _METADATA,
            },
            optional=("metadata",),
        ),
        "ChatCompletionChunk": _object(
            {
                **_HEAD,
                "object": {"const": "chat.completion.chunk"},
                "choices": {"type": "array", "items": _CHUNK_CHOICE},
                "usage": {"oneOf": [{"$ref": _REF + "Usage"}, {"type": "null"}]},
                "metadata": _METADATA,
            },
            optional=("usage", "metadata"),
        ),
        "Usage": _USAGE,
        "Error": _ERROR,
    }


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of error statuses, for a route's `responses`."""
    content = {"application/json": {"schema": {"$ref": _REF + "Error"}}}
    return {
        status: {"description": _ERROR_MEANINGS[status], "content": content} for status in statuses
    }


def chat_responses() -> dict[int | str, dict[str, Any]]:
    """The documentation of everything the chat route may answer."""
    answered = {
        "description": "The answer: one JSON object, or events with `stream: true`.",
        "headers": {
            "x-request-id": {"schema": _STRING, "description": "Name it when you report an error."},
            "x-deeprequest-ignored": {
                "schema": _STRING,
                "description": "Fields of the request that had no effect.",
            },
        },
        "content": {
            "application/json": {"schema": {"$ref": _REF + "ChatCompletion"}},
            "text/event-stream": {
                "schema": {
                    **_STRING,
                    "description": _STREAM_TEXT,
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": _REF + "ChatCompletionChunk"},
                }
            },
        },
    }
    errors = error_responses(400, 401, 403, 404, 405, 408, 413, 415, 429, 431, 500, 503, 504)
    return {200: answered, **errors}


def chat_request_body(model: str) -> dict[str, Any]:
    """The documentation of the chat route's body, with examples that run as they stand."""
    recommended = {
        "model": model,
        "messages": STRAWBERRY,
        "temperature": 0.6,
        "top_p": 0.95,
        "max_tokens": 500,
    }
    question = "What is 12 + 30? Please reason step by step."
    examples = {
        "standard": ("Standard request", recommended),
        "streaming": ("Streaming request", {**recommended, "stream": True}),
        "math": (
            "A math problem, with top-k sampling",
            {**recommended, "messages": [{"role": "user", "content": question}], "top_k": 30},
        ),
        "split": (
            "Thoughts and answer in separate fields",
            {**recommended, "reasoning_format": "split"},
        ),
    }
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": _REF + "ChatCompletionRequest"},
                "examples": {
                    name: {"summary": summary, "value": value}
                    for name, (summary, value) in examples.items()
                },
            }
        },
    }
