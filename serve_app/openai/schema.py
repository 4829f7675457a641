"""ChatCompletionRequest: what may be asked of /v1/chat/completions, and its way into plain data.

Owns the parameters of a chat, their bounds and defaults, and the one door for a request body,
`parse_chat_request`. Refuses to know HTTP, tokens and limits of tenants.
"""

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError

from cluster.request import MAX_LOGPROBS
from cluster.text.template import Message
from serve_app.openai.answer_form import FORM_MODELS
from serve_app.openai.body import at_most, header_names, json_object, unknown_fields
from serve_app.openai.conversation import check_calls, conversation
from serve_app.openai.errors import invalid_value
from serve_app.openai.generation_fields import MAX_TOKENS, StreamOptions
from serve_app.openai.messages import (
    MAX_PARTS,
    CalledFunction,
    ChatMessage,
    Prediction,
    TextPart,
    ToolCall,
)
from serve_app.openai.reasoning_fields import (
    REASONING_MODELS,
    ReasoningDefaults,
    unknown_reasoning_parts,
)
from serve_app.openai.tools import TOOL_MODELS, ToolFields
from serve_app.openai.unsupported import take_unsupported
from serve_app.openai.validation import from_validation_error

DEFAULT_MAX_TOKENS = 100
MAX_MESSAGES = 2_048
MAX_METADATA = 16

MetadataKey = Annotated[str, Field(max_length=64)]


class ChatCompletionRequest(ToolFields):
    """A conversation to continue, and how."""

    messages: Annotated[
        list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    ]
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    """Most tokens to generate, thoughts included; 100 if neither this nor the newer name is set."""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    """The newer name of max_tokens; wins if both are set."""
    logprobs: bool = False
    """Tell the logarithmic probability of each token that content shows."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """How many of the likeliest tokens to tell beside each; needs logprobs."""
    continue_final_message: bool = False
    """Go on with the last message, an assistant's: with its answer, or with the thoughts that it
    opens by <think> or holds in reasoning_content. What is sent back is what was added."""
    add_generation_prompt: bool | None = None
    """false: end the prompt with the last message, with nothing that asks for an answer."""
    prediction: Prediction | None = None
    """Makes an output that repeats it come sooner; never changes what is generated."""
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
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to tell beside each; None: not even the drawn one."""
        return self.top_logprobs or 0 if self.logprobs else None

    def check_together(self) -> None:
        """As for every request; what is told of tokens fits together too."""
        super().check_together()
        check_calls(self.messages)
        if self.top_logprobs and not self.logprobs:
            message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is true."
            raise invalid_value("top_logprobs", message)
        if self.continue_final_message:
            self._check_continuation()

    def _check_continuation(self) -> None:
        self.rule_out("continue_final_message")
        if self.messages[-1].tool_calls:
            message = "a message that ends with calls cannot be continued."
            raise invalid_value(
                "continue_final_message", f"Invalid value for 'continue_final_message': {message}"
            )
        if self.add_generation_prompt:
            message = "'add_generation_prompt' and 'continue_final_message' cannot both be true."
            raise invalid_value("add_generation_prompt", f"Invalid value: {message}")
        if self.messages[-1].role != "assistant":
            message = "only a last message of the assistant can be continued."
            raise invalid_value(
                "continue_final_message", f"Invalid value for 'continue_final_message': {message}"
            )

    def conversation(self) -> list[Message]:
        """The messages as the chat template wants them."""
        return conversation(self.messages, self.calling)


class ParsedRequest(NamedTuple):
    """A valid request and the names of what it sent without effect."""

    request: ChatCompletionRequest
    ignored: tuple[str, ...]
    """For the header x-deeprequest-ignored."""

    def with_defaults(self, defaults: ReasoningDefaults) -> "ParsedRequest":
        """What the request leaves open, as the API key has it."""
        return self._replace(request=self.request.with_defaults(defaults))


def parse_chat_request(body: bytes) -> ParsedRequest:
    """The one door: bytes from anybody in, a request within all bounds out.

    Raises:
        ApiError: 400, with `param` where a field is at fault.
    """
    fields = json_object(body)
    take_unsupported(fields)
    _check_lengths(fields)
    try:
        request = ChatCompletionRequest.model_validate(fields)
    except ValidationError as error:
        # `from None`: pydantic's report quotes the request, which must not reach a log.
        raise from_validation_error(error, KNOWN_NAMES) from None
    request.check_together()
    return ParsedRequest(request, header_names(_unknown_names(request)))


def _check_lengths(fields: dict[str, Any]) -> None:
    messages, metadata = fields.get("messages"), fields.get("metadata")
    if isinstance(messages, list):
        at_most("messages", len(messages), MAX_MESSAGES, "entries")
        contents = (message.get("content") for message in messages if isinstance(message, dict))
        parts = sum(len(content) for content in contents if isinstance(content, list))
        at_most("messages", parts, MAX_PARTS, "content parts in total")
    if isinstance(metadata, dict):
        at_most("metadata", len(metadata), MAX_METADATA, "entries")


def _unknown_names(request: ChatCompletionRequest) -> Iterator[str]:
    yield from unknown_fields(request)
    if request.stream_reasoning is False:
        yield "stream_reasoning"
    yield from unknown_fields(request.stream_options, "stream_options.")
    for reasoning_part, prefix in unknown_reasoning_parts(request):
        yield from unknown_fields(reasoning_part, prefix)
    yield from _prediction_extras(request.prediction)
    if request.response_format is not None:
        yield from unknown_fields(request.response_format, "response_format.")
        yield from unknown_fields(
            request.response_format.json_schema, "response_format.json_schema."
        )
    for tool in request.tools or ():
        yield from unknown_fields(tool, "tools.")
        yield from unknown_fields(tool.function, "tools.function.")
    for message in request.messages:
        yield from unknown_fields(message, "messages.")
        for call in message.tool_calls or ():
            yield from unknown_fields(call, "messages.tool_calls.")
            yield from unknown_fields(call.function, "messages.tool_calls.function.")
        for part in message.content if isinstance(message.content, list) else ():
            yield from unknown_fields(part, "messages.content.")


def _prediction_extras(prediction: Prediction | None) -> Iterator[str]:
    if prediction is None:
        return
    yield from unknown_fields(prediction, "prediction.")
    for part in prediction.content if isinstance(prediction.content, list) else ():
        yield from unknown_fields(part, "prediction.content.")


KNOWN_NAMES = frozenset(
    field.alias or name
    for model in (
        ChatCompletionRequest,
        ChatMessage,
        TextPart,
        Prediction,
        StreamOptions,
        *REASONING_MODELS,
        *FORM_MODELS,
        *TOOL_MODELS,
        ToolCall,
        CalledFunction,
    )
    for name, field in model.model_fields.items()
)
