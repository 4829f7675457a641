"""AnswerForm: what an answer must look like, as a chat may ask for it.

Owns `response_format`, and what an answer with a form rules out. Refuses to know grammars: a form
is a JSON schema and the name of the field that holds it.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from cluster.text.json_grammar import ANY_OBJECT
from serve_app.openai.body import Strict
from serve_app.openai.errors import invalid_value, missing_parameter
from serve_app.openai.json_schema import check_schema
from serve_app.openai.reasoning_fields import ReasoningFields
from serve_app.openai.reasoning_format import ReasoningFormat

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class JsonSchema(Strict):
    """A JSON Schema and what it is called."""

    name: Annotated[str, Field(max_length=64)]
    """Letters, digits, underscores and dashes."""
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    """At most 64 KiB, 16 levels and 1,000 enum values."""
    strict: bool | None = None
    """The schema is always held to."""


class ResponseFormat(Strict):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Form(NamedTuple):
    """A schema that the answer satisfies."""

    schema: Mapping[str, Any]
    param: str
    """The field that asked for it."""


class AnswerFormFields(ReasoningFields):
    """A chat whose answer may have a form."""

    response_format: ResponseFormat | None = None
    """json_object: the answer is a JSON object. json_schema: it satisfies the schema. The thoughts
    before it are free, and told apart from it. Say in a message what the answer should hold: the
    schema is held to, but the model is not shown it."""

    @property
    def form(self) -> Form | None:
        """What the answer must satisfy; None: nothing."""
        asked = self.response_format
        if asked is None or asked.type == "text":
            return None
        if asked.type == "json_object":
            return Form(ANY_OBJECT, "response_format")
        assert asked.json_schema is not None, "check_together has passed"
        schema = asked.json_schema.json_schema
        return Form(schema or {}, "response_format.json_schema.schema")

    def shown_reasoning(self) -> ReasoningFormat:
        """As for every chat; an answer with a form is never mixed with thoughts."""
        shown = super().shown_reasoning()
        return "split" if shown == "think_tags" and self.form is not None else shown

    def check_together(self) -> None:
        """As for every chat; an answer with a form ends when it is complete, not before."""
        super().check_together()
        self._check_response_format()
        for name in ("ignore_eos", "min_tokens"):
            if getattr(self, name):
                self.rule_out(name)

    def constrained_by(self) -> str | None:
        """The field that gives the answer a form, if one does."""
        return "response_format" if self.form is not None else None

    def rule_out(self, name: str) -> None:
        """Raises ApiError where the answer has a form, which the field `name` contradicts."""
        if (other := self.constrained_by()) is not None:
            raise invalid_value(name, f"'{name}' cannot be combined with '{other}'.")

    def _check_response_format(self) -> None:
        asked = self.response_format
        if asked is None or asked.type != "json_schema":
            return
        if asked.json_schema is None:
            raise missing_parameter("response_format.json_schema")
        if not _NAME.fullmatch(asked.json_schema.name):
            param = "response_format.json_schema.name"
            message = "must hold letters, digits, underscores and dashes only"
            raise invalid_value(param, f"Invalid value for '{param}': {message}.")
        if asked.json_schema.json_schema is None:
            raise missing_parameter("response_format.json_schema.schema")
        check_schema(asked.json_schema.json_schema, "response_format.json_schema.schema")


FORM_MODELS = (ResponseFormat, JsonSchema)
