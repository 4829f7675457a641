"""What the API reference says of the chat route: schemas, examples, answers and errors as data.

Owns the texts and shapes that /openapi.json shows. Refuses to know the web framework. The request's
schema is taken from ChatCompletionRequest, so that it cannot drift from what is checked.
"""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from serve_app.openai.header_reference import RESPONSE_HEADERS
from serve_app.openai.openapi import ANYWHERE, error_responses
from serve_app.openai.openapi import INTEGER as _INTEGER
from serve_app.openai.openapi import REF as _REF
from serve_app.openai.openapi import STRING as _STRING
from serve_app.openai.openapi import STRING_OR_NULL as _STRING_OR_NULL
from serve_app.openai.openapi import object_of as _object
from serve_app.openai.schema import ChatCompletionRequest
from serve_app.openai.unsupported import CHAT_REFUSALS

STRAWBERRY = [
    {"role": "system", "content": "You are a helpful assistant that thinks step by step."},
    {"role": "user", "content": "How many r's are in the word 'strawberry'?"},
]

_REASONING = {
    "reasoning_content": {**_STRING, "description": "The thoughts, with reasoning_format split."},
    "reasoning": {**_STRING, "description": "The same text under its other usual name."},
}
_FINISH_REASON = {
    "type": ["string", "null"],
    "enum": ["stop", "length", "tool_calls", None],
    "description": "length: max_tokens was reached, perhaps before there was an answer.",
}
STOP_REASON = {
    "type": ["string", "integer", "null"],
    "description": "The stop string or stop token id that ended the answer.",
}
_REASONING_CAUSE = {
    "reasoning_truncated": {
        "type": "boolean",
        "description": "Whether the server closed the thoughts, so that an answer could follow.",
    },
    "reasoning_stop": {
        "type": ["string", "null"],
        "enum": ["budget", "loop", None],
        "description": "Why it did: a budget or the answer reserve; or they went in a circle.",
    },
}
HEAD = {
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
_CALLED = {
    "name": _STRING,
    "arguments": {**_STRING, "description": "JSON that satisfies the function's schema."},
}
_CALL = {
    "id": {**_STRING, "description": "The result of the call names it as tool_call_id."},
    "type": {"const": "function"},
}
_CALLS = {"type": "array", "items": _object({**_CALL, "function": _object(_CALLED)})}
_CALL_DELTAS = {
    "type": "array",
    "items": _object(
        {"index": _INTEGER, **_CALL, "function": _object(_CALLED, optional=("name",))},
        optional=tuple(_CALL),
    ),
    "description": "The first delta of a call has its id and name; arguments come in pieces.",
}
_MESSAGE = _object(
    {
        "role": {"const": "assistant"},
        "content": {
            **_STRING_OR_NULL,
            "description": "By default the thoughts in <think>...</think>, then the answer. null: "
            "nothing but calls.",
        },
        "tool_calls": _CALLS,
        **_REASONING,
        "refusal": {"type": "null"},
    },
    optional=("tool_calls", *_REASONING),
)
_LOGPROB = {
    "token": {**_STRING, "description": "Bytes that are no whole character read \\xf0."},
    "logprob": {
        "type": "number",
        "description": "Of the model's own softmax: before temperature, filters, penalties, bias.",
    },
    "bytes": {"type": "array", "items": _INTEGER, "description": "The token's true bytes."},
}
_LOGPROBS = {
    "oneOf": [
        {"type": "null"},
        _object(
            {
                "content": {
                    "type": "array",
                    "items": _object(
                        {
                            **_LOGPROB,
                            "top_logprobs": {"type": "array", "items": _object(_LOGPROB)},
                        }
                    ),
                    "description": "One entry for each token that `content` shows; their bytes, "
                    "joined, are the content, and the calls behind it as the model wrote them. "
                    "Thoughts have entries where content shows them.",
                },
                "refusal": {"type": "null"},
            }
        ),
    ],
}
TOKEN_IDS = {
    "type": "array",
    "items": _INTEGER,
    "description": "What was generated, with return_token_ids; never hidden thoughts.",
}
_CHOICE = _object(
    {
        "index": _INTEGER,
        "message": _MESSAGE,
        "logprobs": _LOGPROBS,
        "token_ids": TOKEN_IDS,
        "finish_reason": _FINISH_REASON,
        "stop_reason": STOP_REASON,
        **_REASONING_CAUSE,
    },
    optional=("token_ids",),
)
_DELTA = _object(
    {"role": _STRING, "content": _STRING, "tool_calls": _CALL_DELTAS, **_REASONING}
) | {"required": []}
_CHUNK_CHOICE = _object(
    {
        "index": _INTEGER,
        "delta": _DELTA,
        "logprobs": _LOGPROBS,
        "token_ids": TOKEN_IDS,
        "finish_reason": _FINISH_REASON,
        "stop_reason": STOP_REASON,
        **_REASONING_CAUSE,
    },
    optional=("token_ids", "stop_reason", *_REASONING_CAUSE),
)
_ECHO = {
    "metadata": {"type": "object", "additionalProperties": _STRING},
    "prompt_token_ids": {
        "type": "array",
        "items": _INTEGER,
        "description": "The rendered prompt, with return_token_ids; streamed in the first event.",
    },
}
_RUNNING_USAGE = _object(
    {"prompt_tokens": _INTEGER, "completion_tokens": _INTEGER, "total_tokens": _INTEGER}
)
USAGE_SO_FAR = {"anyOf": [{"$ref": _REF + "Usage"}, _RUNNING_USAGE, {"type": "null"}]}
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
_STREAM_TEXT = """Server-sent events. Each `data:` line holds a {chunk}. A stream that succeeds \
ends with `data: [DONE]`; one that fails ends with `data: {{"error": {{...}}}}` and without it. \
Lines that start with a colon are keep-alives."""


def schemas() -> dict[str, Any]:
    """Components by name; references point into `#/components/schemas/`."""
    request, parts = request_schema(ChatCompletionRequest, CHAT_REFUSALS)
    return {
        **parts,
        "ChatCompletionRequest": request,
        "ChatCompletion": _object(
            {
                **HEAD,
                "object": {"const": "chat.completion"},
                "choices": {"type": "array", "items": _CHOICE},
                "usage": {"$ref": _REF + "Usage"},
                **_ECHO,
            },
            optional=tuple(_ECHO),
        ),
        "ChatCompletionChunk": _object(
            {
                **HEAD,
                "object": {"const": "chat.completion.chunk"},
                "choices": {"type": "array", "items": _CHUNK_CHOICE},
                "usage": USAGE_SO_FAR,
                **_ECHO,
            },
            optional=("usage", *_ECHO),
        ),
        "Usage": _USAGE,
        "Error": _ERROR,
    }


def request_schema(
    request: type[BaseModel], refused: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a body may hold, and the named parts of that."""
    schema = request.model_json_schema(ref_template=_REF + "{model}")
    parts: dict[str, Any] = schema.pop("$defs", {})
    schema["description"] = (
        f"{schema.get('description', '')} Fields that are not listed here are accepted without "
        "effect and named in the response header x-deeprequest-ignored. Refused, unless they ask "
        f"for nothing: {', '.join(refused)}."
    )
    return schema, parts


def chat_responses() -> dict[int | str, dict[str, Any]]:
    """The documentation of everything the chat route may answer."""
    chunk = "chat.completion.chunk: first one with the role, then the text, last the finish_reason"
    return text_responses("ChatCompletion", "ChatCompletionChunk", chunk)


def text_responses(whole: str, chunk: str, events: str) -> dict[int | str, dict[str, Any]]:
    """Of a route that generates; the names of its two objects, and what its events hold."""
    answered = {
        "description": "The answer: one JSON object, or events with `stream: true`.",
        "headers": RESPONSE_HEADERS,
        "content": {
            "application/json": {"schema": {"$ref": _REF + whole}},
            "text/event-stream": {
                "schema": _event(chunk) | {"description": _STREAM_TEXT.format(chunk=events)}
            },
        },
    }
    errors = error_responses(400, 401, 403, 404, 409, 422, 429, 504, *ANYWHERE)
    return {200: answered, **errors}


def _event(chunk: str) -> dict[str, Any]:
    """One event of a stream; OpenAPI 3.1 leaves open what a stream's schema means."""
    told = {"anyOf": [{"$ref": _REF + chunk}, {"$ref": _REF + "Error"}]}
    data = {**_STRING, "contentMediaType": "application/json", "contentSchema": told}
    return {"type": "object", "properties": {"data": {"anyOf": [{"const": "[DONE]"}, data]}}}


_COUNT_FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "count",
        "schema": {
            "type": "object",
            "properties": {"letter": _STRING, "count": _INTEGER},
            "required": ["letter", "count"],
            "additionalProperties": False,
        },
    },
}
_ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "The sum of two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}


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
        "structured": (
            "An answer of a given form",
            {**recommended, "response_format": _COUNT_FORM},
        ),
        "tools": (
            "A function that the model may call",
            {**recommended, "messages": [{"role": "user", "content": question}], "tools": [_ADD]},
        ),
        "budget": (
            "At most 200 tokens of thoughts, then the answer",
            {**recommended, "thinking_token_budget": 200},
        ),
    }
    return request_body("ChatCompletionRequest", examples)


def request_body(schema: str, examples: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """The documentation of a body: the name of its schema, and (summary, value) by name."""
    shown = {
        name: {"summary": summary, "value": value} for name, (summary, value) in examples.items()
    }
    content = {"schema": {"$ref": _REF + schema}, "examples": shown}
    return {"required": True, "content": {"application/json": content}}
