"""What the API reference says of the routes that generate nothing: tokens, rendered chats, models.

Owns their texts and shapes as data. Refuses to know the web framework. Requests are described by
the classes that check them.
"""

from typing import Any

from serve_app.openai.openapi import ANYWHERE, INTEGER, REF, STRING, error_responses, object_of
from serve_app.openai.reference import STRAWBERRY
from serve_app.openai.tokens import DetokenizeRequest, TokenizeRequest

_TOKENS = {"type": "array", "items": INTEGER}
_PRICE = {
    "type": ["object", "null"],
    "description": "Per token, as decimal strings; null where none is set.",
    "properties": {
        "currency": STRING,
        "prompt": STRING,
        "completion": STRING,
        "input_cache_read": STRING,
    },
}
_MODEL = object_of(
    {
        "id": STRING,
        "object": {"const": "model"},
        "created": {**INTEGER, "description": "Unix time in seconds."},
        "owned_by": STRING,
        "context_length": {**INTEGER, "description": "Prompt and answer together, in tokens."},
        "max_model_len": INTEGER,
        "served_by": {**STRING, "description": "What really answers under this id."},
        "default_sampling": {"type": "object"},
        "limits": {"type": "object", "description": "Bounds of a request, and of your API key."},
        "pricing": _PRICE,
    }
)
_WARNING = object_of({"code": STRING, "param": STRING, "message": STRING})
_RENDER = object_of(
    {
        "object": {"const": "chat.completion.render"},
        "model": STRING,
        "prompt": {**STRING, "description": "The text that the model would be given."},
        "token_ids": _TOKENS,
        "prompt_tokens": INTEGER,
        "cached_tokens": {
            "type": ["integer", "null"],
            "description": "Tokens that a replica's cache holds already; null: not known.",
        },
        "max_tokens": INTEGER,
        "max_model_len": INTEGER,
        "sampling": {"type": "object"},
        "warnings": {"type": "array", "items": _WARNING},
        "ignored": {"type": "array", "items": STRING},
    }
)


def token_schemas() -> dict[str, Any]:
    """Components by name."""
    by_prompt = TokenizeRequest.model_json_schema(ref_template=REF + "{model}")
    by_messages = {
        "type": "object",
        "description": "A conversation, in the words of a chat request; `model` may be left out.",
        "properties": {"messages": {"$ref": REF + "ChatCompletionRequest/properties/messages"}},
        "required": ["messages"],
    }
    return {
        "TokenizeRequest": {"anyOf": [by_prompt, by_messages]},
        "DetokenizeRequest": DetokenizeRequest.model_json_schema(ref_template=REF + "{model}"),
        "Model": _MODEL,
        "ChatRender": _RENDER,
    }


def tokenize_route() -> dict[str, Any]:
    """Keyword arguments for `FastAPI.post`, as of all functions here."""
    reply = object_of(
        {
            "count": INTEGER,
            "max_model_len": INTEGER,
            "tokens": _TOKENS,
            "token_strs": {"type": ["array", "null"], "items": STRING},
        }
    )
    return {
        "summary": "Count and see the tokens of a text or a conversation",
        "description": "Control tokens come from the chat template alone: text that spells one is "
        "cut into ordinary tokens.",
        "operation_id": "tokenize",
        "tags": ["Tokens"],
        **_posted("TokenizeRequest", reply, {"prompt": "How many r's are in 'strawberry'?"}),
    }


def detokenize_route() -> dict[str, Any]:
    """See `tokenize_route`."""
    return {
        "summary": "Turn token ids into text",
        "description": "Gives back what /tokenize was given. Bytes that are no text become U+FFFD.",
        "operation_id": "detokenize",
        "tags": ["Tokens"],
        **_posted("DetokenizeRequest", object_of({"prompt": STRING}), {"tokens": [33, 34]}),
    }


def render_route(model: str) -> dict[str, Any]:
    """See `tokenize_route`; `model` is the id in the example."""
    return {
        "summary": "See the prompt of a chat completion",
        "description": "Takes what /v1/chat/completions takes and generates nothing: the prompt as "
        "text and ids, the settings in force, and advice. Costs nothing.",
        "operation_id": "renderChatCompletion",
        "tags": ["Chat"],
        **_posted(
            "ChatCompletionRequest",
            {"$ref": REF + "ChatRender"},
            {"model": model, "messages": STRAWBERRY},
        ),
    }


def models_route() -> dict[str, Any]:
    """Keyword arguments for `FastAPI.get`."""
    data = {"type": "array", "items": {"$ref": REF + "Model"}}
    listed = object_of({"object": {"const": "list"}, "data": data})
    return {"summary": "The models served here", **_model_route("listModels", listed)}


def model_route() -> dict[str, Any]:
    """Keyword arguments for `FastAPI.get`."""
    found = {"$ref": REF + "Model"}
    return {"summary": "One model", **_model_route("retrieveModel", found)}


def _model_route(operation: str, reply: dict[str, Any]) -> dict[str, Any]:
    return {
        "operation_id": operation,
        "tags": ["Models"],
        "responses": {
            200: _answered(reply),
            **error_responses(401, 403, 404, *ANYWHERE),
        },
        "openapi_extra": {"security": [{"ApiKey": []}]},
    }


def _posted(request: str, reply: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    body = {"schema": {"$ref": REF + request}, "example": example}
    return {
        "responses": {200: _answered(reply), **error_responses(400, 401, 403, 404, *ANYWHERE)},
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": body}},
            "security": [{"ApiKey": []}],
        },
    }


def _answered(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "Done.", "content": {"application/json": {"schema": schema}}}
