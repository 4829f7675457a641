"""What the API reference says of raw prompts: schemas, examples, answers and errors as data.

Owns the texts and shapes that /openapi.json shows of /v1/completions. Refuses to know the web
framework. The request's schema is taken from CompletionRequest, so that it cannot drift from what
is checked.
"""

from typing import Any

from serve_app.openai.completion_schema import CompletionRequest
from serve_app.openai.openapi import INTEGER, REF, STRING, object_of
from serve_app.openai.reference import (
    HEAD,
    STOP_REASON,
    TOKEN_IDS,
    USAGE_SO_FAR,
    request_body,
    request_schema,
    text_responses,
)
from serve_app.openai.unsupported import COMPLETION_REFUSALS

_NUMBER_OR_NULL = {"type": ["number", "null"]}
_LISTS = {
    "tokens": {
        "type": "array",
        "items": STRING,
        "description": "One for each token, the one that ends the text too.",
    },
    "token_logprobs": {
        "type": "array",
        "items": _NUMBER_OR_NULL,
        "description": "Of the model's own softmax. null: an echo's first token follows nothing.",
    },
    "top_logprobs": {
        "type": "array",
        "items": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
        "description": "The likeliest tokens, and the token itself.",
    },
    "text_offset": {
        "type": "array",
        "items": INTEGER,
        "description": "Characters of the text before the token.",
    },
}
_LOGPROBS = {"oneOf": [{"type": "null"}, object_of(_LISTS)]}
_IDS = {
    "prompt_token_ids": {**TOKEN_IDS, "description": "The prompt, with return_token_ids."},
    "token_ids": {**TOKEN_IDS, "description": "What was generated, with return_token_ids."},
}
_CHOICE = {
    "index": {**INTEGER, "description": "The first prompt's choices come first."},
    "text": STRING,
    "logprobs": _LOGPROBS,
    **_IDS,
    "finish_reason": {
        "type": ["string", "null"],
        "enum": ["stop", "length", None],
        "description": "length: max_tokens was reached.",
    },
    "stop_reason": STOP_REASON,
}
_HEAD = {
    **HEAD,
    "id": {**STRING, "examples": ["cmpl-123456789"]},
    "object": {"const": "text_completion"},
}


def completion_schemas() -> dict[str, Any]:
    """Components by name."""
    request, parts = request_schema(CompletionRequest, COMPLETION_REFUSALS)
    choices = {"type": "array", "items": object_of(_CHOICE, optional=tuple(_IDS))}
    parts_of = {"type": "array", "items": object_of(_CHOICE, optional=(*_IDS, "stop_reason"))}
    return {
        **parts,
        "CompletionRequest": request,
        "Completion": object_of({**_HEAD, "choices": choices, "usage": {"$ref": REF + "Usage"}}),
        "CompletionChunk": object_of(
            {**_HEAD, "choices": parts_of, "usage": USAGE_SO_FAR}, optional=("usage",)
        ),
    }


def completion_responses() -> dict[int | str, dict[str, Any]]:
    """The documentation of everything the route may answer."""
    events = "text_completion: first the echo, if asked for, last one with the finish_reason"
    return text_responses("Completion", "CompletionChunk", events)


def completion_request_body(model: str) -> dict[str, Any]:
    """The documentation of the route's body, with examples that run as they stand."""
    standard = {"model": model, "prompt": "Let me spell it:", "max_tokens": 20}
    likelihood = {
        "model": model,
        "prompt": [33, 34, 35],
        "echo": True,
        "logprobs": 1,
        "max_tokens": 0,
    }
    return request_body(
        "CompletionRequest",
        {
            "standard": ("Go on with a text", standard),
            "streaming": (
                "Several texts, streamed",
                {**standard, "prompt": ["1 2 3", "a b c"], "stream": True},
            ),
            "likelihood": ("How likely is a prompt, token by token?", likelihood),
            "best": ("The likeliest of four", {**standard, "best_of": 4}),
        },
    )
