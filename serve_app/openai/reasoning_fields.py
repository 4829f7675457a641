"""ReasoningFields: what a chat may say of the model's thoughts: how they are shown, how long they
may be.

Owns the parameters under all the names that clients use, what each asks for, and that what was
asked under several names is the same. Refuses to know tokens: a budget becomes a rule of the engine
elsewhere.

    how long    thinking_token_budget, thinking_budget, reasoning.max_tokens, thinking.budget_tokens
    how hard    reasoning_effort, reasoning.effort: a budget by a word
    whether     reasoning.enabled, thinking.type, chat_template_kwargs.thinking

A number of tokens goes before a word. A budget of 0, the effort none and a switch that is off say
the same: no thoughts.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from serve_app.openai.body import Numbered, Strict
from serve_app.openai.errors import invalid_value
from serve_app.openai.generation_fields import GenerationFields
from serve_app.openai.reasoning_format import ReasoningFormat

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Budget = Annotated[int, Field(ge=-1, lt=2**31)]
"""-1: no bound."""
EFFORT_BUDGETS: dict[Effort, int | None] = {
    "none": 0,
    "minimal": 512,
    "low": 1024,
    "medium": 4096,
    "high": 16384,
    "xhigh": 24576,
    "max": None,
}
RESERVE_SHARE = 4
MAX_RESERVE = 1024


class ReasoningOptions(Numbered):
    """OpenRouter's way to say it."""

    exclude: bool | None = None
    """true is another way to say reasoning_format hidden."""
    enabled: bool | None = None
    effort: Effort | None = None
    max_tokens: Budget | None = None
    """Another name of thinking_token_budget."""


class ThinkingSwitch(Numbered):
    """DeepSeek's way to switch thinking on or off."""

    type: Literal["enabled", "disabled"]
    budget_tokens: Budget | None = None
    """Another name of thinking_token_budget."""


class TemplateOptions(Numbered):
    """What a chat template may be told: whether to think, and how long."""

    thinking: bool | None = None
    enable_thinking: bool | None = None
    thinking_token_budget: Budget | None = None
    thinking_budget: Budget | None = None
    reasoning_effort: Effort | None = None


class _Asked(NamedTuple):
    """What one field asks for."""

    param: str
    value: Any


class ReasoningDefaults(Protocol):
    """What holds where a request does not say."""

    @property
    def reasoning_format(self) -> ReasoningFormat | None:
        """None: as the API's default."""

    @property
    def answer_reserve(self) -> bool:
        """Whether tokens are kept for the answer."""


class ReasoningFields(GenerationFields):
    """A generation that thinks before it answers."""

    reasoning_format: ReasoningFormat | None = None
    """think_tags: inside content. split: reasoning_content and reasoning. hidden: withheld."""
    include_reasoning: bool | None = None
    """false is another way to say reasoning_format hidden, whatever else is said of it."""
    separate_reasoning: bool | None = None
    """true is another way to say reasoning_format split."""
    stream_reasoning: bool | None = None
    """true is how it is: thoughts are streamed as they come. false is named as ignored."""
    reasoning: ReasoningOptions | None = None
    thinking_token_budget: Budget | None = None
    """Most tokens of thoughts; they are then closed and the answer follows. -1 is no bound, 0 is no
    thoughts. Counts before max_tokens, which holds for thoughts and answer together."""
    thinking_budget: Budget | None = None
    """Another name of thinking_token_budget."""
    reasoning_effort: Effort | None = None
    """A budget by a word: none 0, minimal 512, low 1024, medium 4096, high 16384, xhigh 24576, max
    no bound."""
    thinking: ThinkingSwitch | None = None
    chat_template_kwargs: TemplateOptions | None = None
    answer_reserve: bool | None = None
    """Keep a quarter of max_tokens, at most 1024, for the answer: thoughts are closed in time."""
    loop_breaker: bool = True
    """Close thoughts that go round in a circle."""

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _known_kwargs_only(cls, value: Any) -> Any:
        names = TemplateOptions.model_fields
        if isinstance(value, dict) and not names.keys() >= value.keys():
            raise PydanticCustomError("invalid_value", f"may hold {', '.join(names)} only")
        return value

    def with_defaults(self, defaults: ReasoningDefaults) -> Self:
        """A copy that says what this leaves open as the API key has it."""
        filled = {
            "reasoning_format": self._shown() or defaults.reasoning_format,
            "answer_reserve": defaults.answer_reserve if self.answer_reserve is None else None,
        }
        return self.model_copy(update={name: said for name, said in filled.items() if said})

    def shown_reasoning(self) -> ReasoningFormat:
        """How to show the thoughts."""
        return self._shown() or "think_tags"

    def _shown(self) -> ReasoningFormat | None:
        excluded = self.reasoning is not None and self.reasoning.exclude
        if self.include_reasoning is False or excluded:
            return "hidden"
        if self.reasoning_format is not None or self.separate_reasoning is None:
            return self.reasoning_format
        return "split" if self.separate_reasoning else "think_tags"

    def thinking_tokens(self, num_closing: int) -> int | None:
        """Most tokens of thoughts, None for no bound, 0 for none at all.

        Args:
            num_closing: tokens that closing them takes; an answer reserve lies behind these.
        """
        for asked in (*self._switches(), *self._efforts(), *self._budgets()):
            if asked.value in (False, 0, "none"):
                return 0
        number = next((asked.value for asked in self._budgets()), -1)
        if number != -1:
            return int(number)
        effort: Effort = next((asked.value for asked in self._efforts()), "max")
        budget = EFFORT_BUDGETS[effort]
        if not self.answer_reserve:
            return budget
        most = self.output_tokens
        in_time = max(0, most - min(-(-most // RESERVE_SHARE), MAX_RESERVE) - num_closing)
        return in_time if budget is None else min(budget, in_time)

    def check_together(self) -> None:
        """Raises ApiError where fields contradict each other."""
        super().check_together()
        budgets, efforts, switches = self._budgets(), self._efforts(), self._switches()
        for group in (budgets, efforts, switches):
            _agree(group)
        whether = [_Asked(param, value not in (0, "none")) for param, value in budgets + efforts]
        _agree(whether + switches)

    def _budgets(self) -> list[_Asked]:
        reasoning, thinking, kwargs = self.reasoning, self.thinking, self.chat_template_kwargs
        return _stated(
            ("thinking_token_budget", self.thinking_token_budget),
            ("thinking_budget", self.thinking_budget),
            ("reasoning.max_tokens", reasoning and reasoning.max_tokens),
            ("thinking.budget_tokens", thinking and thinking.budget_tokens),
            (
                "chat_template_kwargs.thinking_token_budget",
                kwargs and kwargs.thinking_token_budget,
            ),
            ("chat_template_kwargs.thinking_budget", kwargs and kwargs.thinking_budget),
        )

    def _efforts(self) -> list[_Asked]:
        reasoning, kwargs = self.reasoning, self.chat_template_kwargs
        return _stated(
            ("reasoning_effort", self.reasoning_effort),
            ("reasoning.effort", reasoning and reasoning.effort),
            ("chat_template_kwargs.reasoning_effort", kwargs and kwargs.reasoning_effort),
        )

    def _switches(self) -> list[_Asked]:
        reasoning, thinking, kwargs = self.reasoning, self.thinking, self.chat_template_kwargs
        return _stated(
            ("reasoning.enabled", reasoning and reasoning.enabled),
            ("thinking.type", thinking and thinking.type == "enabled"),
            ("chat_template_kwargs.thinking", kwargs and kwargs.thinking),
            ("chat_template_kwargs.enable_thinking", kwargs and kwargs.enable_thinking),
        )


def _stated(*fields: tuple[str, Any]) -> list[_Asked]:
    return [_Asked(param, value) for param, value in fields if value is not None]


def _agree(asked: list[_Asked]) -> None:
    for one in asked[1:]:
        if one.value != asked[0].value:
            message = f"Invalid value for '{one.param}': it contradicts '{asked[0].param}'."
            raise invalid_value(one.param, f"{message} Leave one of them out.")


def unknown_reasoning_parts(request: ReasoningFields) -> Iterator[tuple[Strict | None, str]]:
    """The parts whose unknown fields are named as ignored, each with its prefix."""
    yield request.reasoning, "reasoning."
    yield request.thinking, "thinking."


REASONING_MODELS = (ReasoningOptions, ThinkingSwitch, TemplateOptions)
