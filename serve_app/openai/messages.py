"""What people write: messages, the parts of their text, and predictions of an answer.

Owns their shape and bounds. Refuses to know how they become a prompt.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from serve_app.openai.body import STRING_OR_ARRAY, Strict
from serve_app.openai.unsupported import LEAVE_OUT
from serve_app.openai.validation import UNSUPPORTED

MAX_PARTS = 2_048
"""Content parts of all messages together."""
MAX_TOOL_CALLS = 128
"""In one message."""


class TextPart(Strict):
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
    Annotated[str, Tag("<string>")] | Annotated[Parts, Tag("<array>")], STRING_OR_ARRAY
]


class CalledFunction(Strict):
    """What a call of the past called."""

    name: str
    arguments: str
    """JSON, as the answer told them."""


class ToolCall(Strict):
    """A call of the past."""

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"]
    function: CalledFunction


_ONLY_ASSISTANTS_MAY_BE_SILENT: dict[str, JsonValue] = {
    "if": {"properties": {"role": {"enum": ["system", "developer", "user", "tool"]}}},
    "then": {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
}


class ChatMessage(Strict):
    """One turn. Thoughts of past assistant turns are accepted and never reach the model."""

    model_config = ConfigDict(json_schema_extra=_ONLY_ASSISTANTS_MAY_BE_SILENT)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """`developer` is another word for `system`; `tool` tells the result of a call."""
    content: Content | None = Field(default=None, validate_default=True)
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: (
        Annotated[list[ToolCall], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)] | None
    ) = None
    """What an assistant called."""
    tool_call_id: str | None = None
    """Of a tool's message: which call this is the result of."""
    function_call: Any = None

    @field_validator("role", mode="before")
    @classmethod
    def _no_functions(cls, value: Any) -> Any:
        if value == "function":
            raise PydanticCustomError(UNSUPPORTED, "Send the result with the role 'tool'.")
        return value

    @field_validator("content", mode="before")
    @classmethod
    def _only_assistants_may_be_silent(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("role", "assistant") != "assistant":
            raise PydanticCustomError("union_type", "a string or an array")
        return value

    @field_validator("function_call", mode="before")
    @classmethod
    def _no_function_call(cls, value: Any) -> Any:
        if value:
            raise PydanticCustomError(UNSUPPORTED, LEAVE_OUT)
        return value

    def text(self) -> str:
        """The content as one string; text parts are joined as they are."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    def thoughts(self) -> str:
        """What an assistant thought, if it is told apart from the content."""
        told = (self.reasoning_content, self.reasoning)
        return next((text for text in told if isinstance(text, str) and text), "")


class Prediction(Strict):
    """What the output is likely to repeat: a text to be edited, code to be rewritten."""

    type: Literal["content"]
    content: Content

    def text(self) -> str:
        """The content as one string; text parts are joined as they are."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content
