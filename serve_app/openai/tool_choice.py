"""ToolChoice: which of its functions a chat lets the model call, and whether it must call one.

Owns the shapes of `tool_choice`, as OpenAI's chat API has them. Refuses to know the functions
themselves: it is their names that are chosen.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from serve_app.openai.body import Strict

MAX_TOOLS = 128


class FunctionName(Strict):
    """Which function."""

    name: str


class NamedTool(Strict):
    """A function of `tools`."""

    type: Literal["function"]
    function: FunctionName


class OneToolChoice(NamedTool):
    """The function that must be called."""

    @field_validator("type", mode="before")
    @classmethod
    def _no_other_kind(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "function":
            raise PydanticCustomError("invalid_value", "must be 'function' or 'allowed_tools'")
        return value


class AllowedTools(Strict):
    """Those of the functions that may be called."""

    mode: Literal["auto", "required"]
    """auto: text or calls, as the model likes; required: one of them must be called."""
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedToolChoice(Strict):
    """A choice of some of the functions."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _shape(value: Any) -> str | None:
    if isinstance(value, dict):
        return "<some>" if value.get("type") == "allowed_tools" else "<one>"
    return "<string>" if isinstance(value, str) else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")]
    | Annotated[OneToolChoice, Tag("<one>")]
    | Annotated[AllowedToolChoice, Tag("<some>")],
    Discriminator(
        _shape,
        custom_error_type="union_type",
        custom_error_message="a string or an object",
    ),
]


def chosen_functions(choice: ToolChoice | None) -> dict[str, str]:
    """The names that are chosen, each by the field that holds it; none: all functions."""
    if isinstance(choice, OneToolChoice):
        return {"tool_choice.function.name": choice.function.name}
    if isinstance(choice, AllowedToolChoice):
        tools = enumerate(choice.allowed_tools.tools)
        field = "tool_choice.allowed_tools.tools[{}].function.name"
        return {field.format(index): tool.function.name for index, tool in tools}
    return {}


def must_call(choice: ToolChoice | None) -> bool:
    """Whether an answer without a call is ruled out."""
    if isinstance(choice, AllowedToolChoice):
        return choice.allowed_tools.mode == "required"
    return choice == "required" or isinstance(choice, OneToolChoice)


CHOICE_MODELS = (AllowedToolChoice, AllowedTools, OneToolChoice, NamedTool, FunctionName)
