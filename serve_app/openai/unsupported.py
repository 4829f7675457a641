"""Parameters that are understood and refused, because ignoring them would change the answer.

Owns their list and, for each, the value that asks for nothing (what clients send by habit) and is
accepted. Refuses to know the parameters that are supported. What is in neither list is accepted
without effect and named to the client.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from serve_app.openai.errors import invalid_value, unsupported_parameter
from serve_app.openai.validation import wrong_type

LEAVE_OUT = "Leave it out."


class _Refusal(NamedTuple):
    asks_nothing: Callable[[Any], bool]
    remedy: str
    types: tuple[type, ...] = ()
    """Accepted JSON types; () leaves the check to the refusal itself."""
    expected: str = ""


def _never(value: Any) -> bool:
    return False


def _is(*neutral: Any) -> Callable[[Any], bool]:
    """Equal in value and in type: true is not 1."""
    return lambda value: any(value == item and type(value) is type(item) for item in neutral)


def _switch(neutral: bool) -> _Refusal:
    remedy = f"Leave it out or set it to {str(neutral).lower()}."
    return _Refusal(_is(neutral), remedy, (bool,), "true or false")


def _number(*neutral: float) -> _Refusal:
    remedy = f"Leave it out or set it to {neutral[0]:g}."
    return _Refusal(lambda value: value in neutral, remedy, (int, float), "a number")


_REFUSED = _Refusal(_never, LEAVE_OUT)
_REFUSALS = {
    "tools": _REFUSED,
    "tool_choice": _REFUSED,
    "functions": _REFUSED,
    "function_call": _REFUSED,
    "response_format": _Refusal(
        _is({"type": "text"}), 'Leave it out or set it to {"type": "text"}.', (dict,), "an object"
    ),
    "logprobs": _switch(False),
    "top_logprobs": _REFUSED,
    "prompt_logprobs": _REFUSED,
    "logit_bias": _Refusal(_is({}), LEAVE_OUT, (dict,), "an object"),
    "presence_penalty": _number(0),
    "frequency_penalty": _number(0),
    "repetition_penalty": _number(1),
    "n": _Refusal(_is(1), "Leave it out or set it to 1.", (int,), "an integer"),
    "modalities": _Refusal(_is(["text"]), 'Leave it out or set it to ["text"].'),
    "audio": _REFUSED,
    "web_search_options": _REFUSED,
    "reasoning_effort": _REFUSED,
    "thinking": _Refusal(
        _is({"type": "enabled"}),
        'Leave it out or set it to {"type": "enabled"}.',
        (dict,),
        "an object",
    ),
    "thinking_token_budget": _number(-1),
    "thinking_budget": _number(-1),
    "answer_reserve": _switch(False),
    "chat_template": _REFUSED,
    "chat_template_kwargs": _Refusal(
        _is({}, {"thinking": True}), "Leave it out.", (dict,), "an object"
    ),
    "continue_final_message": _switch(False),
    "add_generation_prompt": _switch(True),
    "echo": _switch(False),
    "truncate_prompt_tokens": _REFUSED,
    "stop_regex": _REFUSED,
    "return_token_ids": _switch(False),
    "return_prompt_text": _switch(False),
    "structured_outputs": _REFUSED,
    "guided_json": _REFUSED,
    "guided_regex": _REFUSED,
    "guided_choice": _REFUSED,
    "guided_grammar": _REFUSED,
    "json_schema": _REFUSED,
    "regex": _REFUSED,
    "ebnf": _REFUSED,
}
UNSUPPORTED_PARAMETERS = tuple(_REFUSALS)
_PENALTIES = ("presence_penalty", "frequency_penalty")


def take_unsupported(fields: dict[str, Any]) -> None:
    """Removes from a request's non-null fields those that ask for nothing.

    Raises:
        ApiError: a field asks for something that is not served, or has the wrong type.
    """
    for name in _REFUSALS.keys() & fields.keys():
        value = fields.pop(name)
        refusal = _REFUSALS[name]
        is_bool_for_number = isinstance(value, bool) and bool not in refusal.types
        if refusal.types and (is_bool_for_number or not isinstance(value, refusal.types)):
            raise wrong_type(name, refusal.expected, value)
        if name in _PENALTIES and not -2 <= value <= 2:
            raise invalid_value(name, f"Invalid value for '{name}': must be from -2 to 2.")
        if name == "n" and value < 1:
            raise invalid_value(name, "Invalid value for 'n': must be at least 1.")
        if not refusal.asks_nothing(value):
            raise unsupported_parameter(name, refusal.remedy)
