"""Tools: what a chat may say of functions that the model may call.

Owns `tools` and `parallel_tool_calls`, their bounds, and what they come to with `tool_choice`:
which functions may be called, and whether one must be. Refuses to know how calls are written.
"""

import re
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from cluster.text.tool_calls import CallRule, Tool
from serve_app.openai.answer_form import AnswerFormFields
from serve_app.openai.body import Strict
from serve_app.openai.errors import invalid_value
from serve_app.openai.json_schema import check_schema
from serve_app.openai.reasoning_format import ReasoningFormat
from serve_app.openai.tool_choice import (
    CHOICE_MODELS,
    MAX_TOOLS,
    OneToolChoice,
    ToolChoice,
    chosen_functions,
    must_call,
)
from serve_app.openai.validation import UNSUPPORTED

MAX_TOOLS_BYTES = 128 * 2**10
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Function(Strict):
    """A function and what it takes."""

    name: Annotated[str, Field(max_length=64)]
    """Letters, digits, underscores and dashes."""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON Schema of objects; none: the function takes nothing."""
    strict: bool | None = None
    """The schema is always held to."""


class FunctionTool(Strict):
    """A tool."""

    type: Literal["function"]
    function: Function

    @field_validator("type", mode="before")
    @classmethod
    def _functions_only(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "function":
            raise PydanticCustomError(UNSUPPORTED, "Only tools of type 'function' are known.")
        return value


class Calling(NamedTuple):
    """What an answer may call."""

    tools: list[Tool]
    rule: CallRule


class ToolFields(AnswerFormFields):
    """A chat that may call functions."""

    tools: (
        Annotated[list[FunctionTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]
        | None
    ) = None
    """Functions that the model may call, at most 128. Arguments always satisfy their schema."""
    tool_choice: ToolChoice | None = None
    """none, auto (the default: text or calls, as the model likes), required, the one function to
    call, or `allowed_tools`: those of the functions that may be called. Others are not shown to the
    model."""
    parallel_tool_calls: bool | None = None
    """Whether there may be several calls in one answer; true if left out."""

    @property
    def calling(self) -> Calling | None:
        """What the answer may call; None: nothing."""
        if not self.tools or self.tool_choice == "none":
            return None
        chosen = chosen_functions(self.tool_choice).values()
        functions = [asked.function for asked in self.tools]
        tools = [_tool(one) for one in functions if not chosen or one.name in chosen]
        parallel = self.parallel_tool_calls is not False
        one_only = isinstance(self.tool_choice, OneToolChoice)
        return Calling(tools, CallRule(must_call(self.tool_choice), parallel and not one_only))

    def shown_reasoning(self) -> ReasoningFormat:
        """As for every chat; an answer with calls is never mixed with thoughts."""
        shown = super().shown_reasoning()
        return "split" if shown == "think_tags" and self.tools else shown

    def constrained_by(self) -> str | None:
        """The field that gives the answer a form, if one does."""
        return super().constrained_by() or ("tools" if self.calling is not None else None)

    def check_together(self) -> None:
        """As for every chat; what is said of tools fits together, too."""
        super().check_together()
        if self.tools is None:
            for name in ("tool_choice", "parallel_tool_calls"):
                if getattr(self, name) not in (None, "none"):
                    message = f"'{name}' is only allowed when 'tools' are specified."
                    raise invalid_value(name, f"Invalid value for '{name}': {message}")
            return
        names = [asked.function.name for asked in self.tools]
        for index, asked in enumerate(self.tools):
            _check_function(asked.function, f"tools[{index}].function", names[:index])
        if sum(_size(asked.function) for asked in self.tools) > MAX_TOOLS_BYTES:
            message = f"they must not be larger than {MAX_TOOLS_BYTES} bytes together"
            raise invalid_value("tools", f"Invalid value for 'tools': {message}.")
        for param, name in chosen_functions(self.tool_choice).items():
            if name not in names:
                message = "not a function of 'tools'"
                raise invalid_value(param, f"Invalid value for '{param}': {message}.")


def is_function_name(name: str) -> bool:
    """Whether a function may be called so."""
    return _NAME.fullmatch(name) is not None


def _tool(function: Function) -> Tool:
    takes_nothing = {"properties": {}, "additionalProperties": False}
    given = takes_nothing if function.parameters is None else function.parameters
    return Tool(function.name, function.description or "", {"type": "object", **given})


def _size(function: Function) -> int:
    """Bytes of all that the model is shown of it."""
    shown = (function.name, function.description, function.parameters)
    return len(orjson.dumps(shown))


def _check_function(function: Function, param: str, earlier: list[str]) -> None:
    """Raises ApiError, which names the part at fault."""
    name = f"{param}.name"
    if not is_function_name(function.name):
        message = "must hold letters, digits, underscores and dashes only"
        raise invalid_value(name, f"Invalid value for '{name}': {message}.")
    if function.name in earlier:
        raise invalid_value(name, f"Invalid value for '{name}': another function is called so.")
    if function.parameters is not None:
        schema = f"{param}.parameters"
        if function.parameters.get("type", "object") != "object":
            raise invalid_value(schema, f"Invalid schema for '{schema}': its type is not 'object'.")
        check_schema(function.parameters, schema)


TOOL_MODELS = (FunctionTool, Function, *CHOICE_MODELS)
