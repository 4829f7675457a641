"""ChatCompletionRequest: what may be asked of /v1/chat/completions, and its way into plain data.

Owns the parameters, their bounds and defaults, and the one door for a request body,
`parse_chat_request`. Refuses to know HTTP, tokens and limits of tenants. Types are strict: true is
not 1 and "1" is not 1. A null field is a field left out.
"""

import re
import secrets
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from cluster.request import INT64_MAX, INT64_MIN, SamplingParams
from cluster.text.template import Message
from serve_app.openai.errors import invalid_json, invalid_value
from serve_app.openai.reasoning_format import ReasoningFormat
from serve_app.openai.unsupported import LEAVE_OUT, take_unsupported
from serve_app.openai.validation import UNSUPPORTED, from_validation_error

DEFAULT_MAX_TOKENS = 100
MAX_TOKENS = 32_768
MAX_MESSAGES = 2_048
MAX_PARTS = 2_048
"""Content parts of all messages together."""
MAX_METADATA = 16
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_IGNORED_NAMES = 20
_MAX_NAME_CHARS = 64
_NOT_TOKEN = re.compile(r"[^A-Za-z0-9_.-]")


def _string_or_array(value: Any) -> str | None:
    return "<string>" if isinstance(value, str) else "<array>" if isinstance(value, list) else None


_STRING_OR_ARRAY = Discriminator(
    _string_or_array, custom_error_type="union_type", custom_error_message="a string or an array"
)


class _Strict(BaseModel):
    """What is common to all parts of a request. Unknown fields are kept to be named as ignored."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, use_attribute_docstrings=True
    )


class TextPart(_Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str

    @field_validator("type", mode="before")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "text":
            raise PydanticCustomError(UNSUPPORTED, "Only parts of type 'text' are read.")
        return value


Parts = Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]
Content = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[Parts, Tag("<array>")], _STRING_OR_ARRAY
]


class ChatMessage(_Strict):
    """One turn. Thoughts of past assistant turns are accepted and never reach the model."""

    role: Literal["system", "developer", "user", "assistant"]
    """`developer` is another word for `system`."""
    content: Content | None = Field(default=None, validate_default=True)
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None
    function_call: Any = None

    @field_validator("role", mode="before")
    @classmethod
    def _no_tools_yet(cls, value: Any) -> Any:
        if isinstance(value, str) and value in ("tool", "function"):
            raise PydanticCustomError(UNSUPPORTED, "Send the result as a user message.")
        return value

    @field_validator("content", mode="before")
    @classmethod
    def _only_assistants_may_be_silent(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("role", "assistant") != "assistant":
            raise PydanticCustomError("union_type", "a string or an array")
        return value

    @field_validator("tool_calls", "function_call", mode="before")
    @classmethod
    def _no_calls(cls, value: Any) -> Any:
        if value:
            raise PydanticCustomError(UNSUPPORTED, LEAVE_OUT)
        return value

    def text(self) -> str:
        """The content as one string; text parts are joined as they are."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(_Strict):
    """What a stream brings beside the text."""

    include_usage: bool | None = None


class ReasoningOptions(_Strict):
    """Another way to hide the reasoning."""

    exclude: bool | None = None
    enabled: bool | None = None
    effort: Any = None
    max_tokens: Any = None

    @field_validator("effort", "max_tokens", mode="before")
    @classmethod
    def _no_budget(cls, value: Any) -> Any:
        if value is not None:
            raise PydanticCustomError(UNSUPPORTED, LEAVE_OUT)
        return value

    @field_validator("enabled")
    @classmethod
    def _always_thinks(cls, value: bool | None) -> bool | None:
        if value is False:
            raise PydanticCustomError(UNSUPPORTED, "The model always thinks before it answers.")
        return value


class Prediction(_Strict):
    """What the output is likely to repeat: a text to be edited, code to be rewritten."""

    type: Literal["content"]
    content: Content

    def text(self) -> str:
        """The content as one string; text parts are joined as they are."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)]
Stop = Annotated[
    Annotated[StopString, Tag("<string>")] | Annotated[Stops, Tag("<array>")], _STRING_OR_ARRAY
]
Identifier = Annotated[str, Field(max_length=512)]
MetadataKey = Annotated[str, Field(max_length=64)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class ChatCompletionRequest(_Strict):
    """A conversation to continue, and how."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    """The model identifier."""
    messages: Annotated[
        list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    ]
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    """Most tokens to generate, thoughts included; 100 if neither this nor the newer name is set."""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    """The newer name of max_tokens; wins if both are set."""
    temperature: float = Field(default=0.6, ge=0, le=2)
    """0 is greedy, which this model does badly with; 0.6 is recommended."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """0.95 is recommended."""
    top_k: int = Field(default=0, ge=-1, le=INT64_MAX)
    """Draw from the top_k likeliest tokens only (recommended: 20-40); 0 and -1 mean all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    seed: int | None = Field(default=None, ge=INT64_MIN, le=INT64_MAX)
    stop: Stop | None = None
    """One string or up to 16. Ends the answer, not the thoughts; the string is not sent."""
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256, fail_fast=True)] = []
    ignore_eos: bool = False
    min_tokens: int = Field(default=0, ge=0, le=MAX_TOKENS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    reasoning_format: ReasoningFormat | None = None
    """think_tags: inside content. split: reasoning_content and reasoning. hidden: withheld."""
    include_reasoning: bool | None = None
    """false is another way to say reasoning_format hidden."""
    separate_reasoning: bool | None = None
    """true is another way to say reasoning_format split."""
    reasoning: ReasoningOptions | None = None
    prediction: Prediction | None = None
    """Makes an output that repeats it come sooner; never changes what is generated."""
    user: Identifier | None = None
    safety_identifier: Identifier | None = None
    metadata: (
        Annotated[
            dict[MetadataKey, Annotated[str, Field(max_length=512)]], Field(max_length=MAX_METADATA)
        ]
        | None
    ) = None

    @property
    def output_tokens(self) -> int:
        """Most tokens to generate."""
        return self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def shown_reasoning(self, default: ReasoningFormat = "think_tags") -> ReasoningFormat:
        """How to show the thoughts; `default` is what the API key says."""
        if self.reasoning_format is not None:
            return self.reasoning_format
        excluded = self.reasoning is not None and self.reasoning.exclude
        if self.include_reasoning is False or excluded:
            return "hidden"
        if self.separate_reasoning is None:
            return default
        return "split" if self.separate_reasoning else "think_tags"

    def conversation(self) -> list[Message]:
        """The messages as the chat template wants them."""
        return [Message(message.role, message.text()) for message in self.messages]

    def sampling_params(self) -> SamplingParams:
        """The parameters as the engine wants them; draws a seed if the client gave none."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        seed = self.seed if self.seed is not None else secrets.randbits(63)
        return SamplingParams(
            max_tokens=self.output_tokens,
            temperature=abs(self.temperature),
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=abs(self.min_p),
            seed=seed,
            stop=stop,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
        )

    def check_vocabulary(self, size: int) -> None:
        """Holds token ids against the model's vocabulary.

        Raises:
            ApiError: a token id that the model does not have.
        """
        for index, token_id in enumerate(self.stop_token_ids):
            if token_id >= size:
                param = f"stop_token_ids[{index}]"
                message = f"Invalid value for '{param}': token ids are less than {size}."
                raise invalid_value(param, message)


class ParsedRequest(NamedTuple):
    """A valid request and the names of what it sent without effect."""

    request: ChatCompletionRequest
    ignored: tuple[str, ...]
    """For the header x-deeprequest-ignored: safe characters, at most MAX_IGNORED_NAMES names."""


def parse_chat_request(body: bytes) -> ParsedRequest:
    """The one door: bytes from anybody in, a request within all bounds out.

    Raises:
        ApiError: 400, with `param` where a field is at fault.
    """
    fields = _json_object(body)
    take_unsupported(fields)
    _check_lengths(fields)
    try:
        request = ChatCompletionRequest.model_validate(fields)
    except ValidationError as error:
        # `from None`: pydantic's report quotes the request, which must not reach a log.
        raise from_validation_error(error, KNOWN_NAMES) from None
    _check_together(request)
    return ParsedRequest(request, _ignored(request))


def _json_object(body: bytes) -> dict[str, Any]:
    """The non-null fields of a body."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise invalid_json() from None
    if not isinstance(fields, dict):
        raise invalid_json()
    return {name: value for name, value in fields.items() if value is not None}


def _check_lengths(fields: dict[str, Any]) -> None:
    """Counts before anything is looked at: a refusal of a flood must be cheap."""
    messages, metadata = fields.get("messages"), fields.get("metadata")
    if isinstance(messages, list):
        _at_most("messages", len(messages), MAX_MESSAGES, "entries")
        contents = (message.get("content") for message in messages if isinstance(message, dict))
        parts = sum(len(content) for content in contents if isinstance(content, list))
        _at_most("messages", parts, MAX_PARTS, "content parts in total")
    if isinstance(metadata, dict):
        _at_most("metadata", len(metadata), MAX_METADATA, "entries")


def _at_most(param: str, count: int, limit: int, noun: str) -> None:
    if count > limit:
        raise invalid_value(
            param, f"Invalid value for '{param}': must have at most {limit} {noun}."
        )


def _check_together(request: ChatCompletionRequest) -> None:
    if request.stream_options is not None and not request.stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is true."
        raise invalid_value("stream_options", message)
    if request.min_tokens > request.output_tokens:
        message = "Invalid value for 'min_tokens': must be at most the number of tokens to generate"
        raise invalid_value("min_tokens", f"{message} ({request.output_tokens}).")


def _ignored(request: ChatCompletionRequest) -> tuple[str, ...]:
    """Names of unknown fields, each once, made safe for a header."""
    names: dict[str, None] = {}
    for name in _unknown_names(request):
        names[_NOT_TOKEN.sub("_", name[:_MAX_NAME_CHARS]) or "_"] = None
        if len(names) == MAX_IGNORED_NAMES:
            break
    return tuple(names)


def _unknown_names(request: ChatCompletionRequest) -> Iterator[str]:
    yield from _extras(request, "")
    yield from _extras(request.stream_options, "stream_options.")
    yield from _extras(request.reasoning, "reasoning.")
    yield from _prediction_extras(request.prediction)
    for message in request.messages:
        yield from _extras(message, "messages.")
        for part in message.content if isinstance(message.content, list) else ():
            yield from _extras(part, "messages.content.")


def _prediction_extras(prediction: Prediction | None) -> Iterator[str]:
    if prediction is None:
        return
    yield from _extras(prediction, "prediction.")
    for part in prediction.content if isinstance(prediction.content, list) else ():
        yield from _extras(part, "prediction.content.")


def _extras(part: _Strict | None, prefix: str) -> Iterator[str]:
    extra = part.model_extra if part is not None else None
    return (f"{prefix}{name}" for name, value in (extra or {}).items() if value is not None)


KNOWN_NAMES = frozenset(
    name
    for model in (
        ChatCompletionRequest,
        ChatMessage,
        TextPart,
        Prediction,
        StreamOptions,
        ReasoningOptions,
    )
    for name in model.model_fields
)
