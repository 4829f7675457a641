"""Tokenization over HTTP: what may be asked of /tokenize and /detokenize, and their replies.

Owns both shapes, which are vLLM's. Refuses to know how text becomes tokens. A conversation is asked
for in the words of /v1/chat/completions, whose parser reads it, so that the tokens counted here are
the tokens charged there.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import orjson
from pydantic import Field, ValidationError

from serve_app.openai.body import Strict, header_names, json_object, unknown_fields
from serve_app.openai.errors import invalid_value, missing_parameter
from serve_app.openai.generation_fields import TokenId
from serve_app.openai.reasoning_fields import ReasoningDefaults
from serve_app.openai.schema import ParsedRequest, parse_chat_request
from serve_app.openai.validation import from_validation_error

MAX_TOKEN_IDS = 2**20
_Request = TypeVar("_Request", bound=Strict)


class TokenizeRequest(Strict):
    """A text to cut into tokens. Nothing in it becomes a control token, whatever it spells."""

    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    prompt: str
    add_special_tokens: bool = True
    """Whether the ids begin with the token that begins every raw prompt of this model."""
    return_token_strs: bool = False
    """Whether each token's text is told as well."""


class TokenizeOptions(Strict):
    """What a request with `messages` may say beside the conversation."""

    add_special_tokens: bool = False
    """Without effect: the chat template sets all control tokens."""
    return_token_strs: bool = False


class DetokenizeRequest(Strict):
    """Token ids to turn into text."""

    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]

    def check_vocabulary(self, size: int) -> None:
        """Raises ApiError where an id is not one of the `size` of the model."""
        for index, token_id in enumerate(self.tokens):
            if token_id >= size:
                param = f"tokens[{index}]"
                message = f"Invalid value for '{param}': token ids are less than {size}."
                raise invalid_value(param, message)


class ParsedTokenize(NamedTuple):
    """A valid request to tokenize: a text or a chat, one of the two."""

    text: TokenizeRequest | None
    chat: ParsedRequest | None
    with_strings: bool
    ignored: tuple[str, ...]

    def with_defaults(self, defaults: ReasoningDefaults) -> "ParsedTokenize":
        """A chat as it would be asked with the same key."""
        return self._replace(chat=self.chat and self.chat.with_defaults(defaults))


class ParsedDetokenize(NamedTuple):
    """A valid request for text."""

    request: DetokenizeRequest
    ignored: tuple[str, ...]


_KNOWN = frozenset((*TokenizeRequest.model_fields, *DetokenizeRequest.model_fields))


def parse_tokenize_request(body: bytes, model: str) -> ParsedTokenize:
    """`model` is the one that is meant where a request names none.

    Raises:
        ApiError: 400, with `param` where a field is at fault.
    """
    fields = json_object(body)
    if "messages" in fields:
        return _tokenize_chat({"model": model, **fields})
    if "prompt" not in fields:
        raise missing_parameter("prompt")
    request = _validated(TokenizeRequest, fields)
    ignored = header_names(unknown_fields(request))
    return ParsedTokenize(request, None, request.return_token_strs, ignored)


def parse_detokenize_request(body: bytes) -> ParsedDetokenize:
    """Raises ApiError: 400, with `param` where a field is at fault."""
    request = _validated(DetokenizeRequest, json_object(body))
    return ParsedDetokenize(request, header_names(unknown_fields(request)))


def tokenize_body(tokens: Sequence[int], max_model_len: int, strings: list[str] | None) -> bytes:
    """`strings`: each token's text, where asked for."""
    return orjson.dumps(
        {
            "count": len(tokens),
            "max_model_len": max_model_len,
            "tokens": tokens,
            "token_strs": strings,
        }
    )


def detokenize_body(text: str) -> bytes:
    return orjson.dumps({"prompt": text})


def _tokenize_chat(fields: dict[str, Any]) -> ParsedTokenize:
    if "prompt" in fields:
        message = "Send either 'prompt' or 'messages', not both."
        raise invalid_value("prompt", message)
    own = {name: fields.pop(name) for name in TokenizeOptions.model_fields if name in fields}
    options = _validated(TokenizeOptions, own)
    chat = parse_chat_request(orjson.dumps(fields))
    return ParsedTokenize(None, chat, options.return_token_strs, chat.ignored)


def _validated(kind: type[_Request], fields: dict[str, Any]) -> _Request:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        # `from None`: pydantic's report quotes the request, which must not reach a log.
        raise from_validation_error(error, _KNOWN) from None
