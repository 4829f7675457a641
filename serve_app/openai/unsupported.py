"""Parameters that are understood and refused, because ignoring them would change the answer.

Owns their list and, for each, the value that asks for nothing (what clients send by habit) and is
accepted. Refuses to know the parameters that are supported. What is in neither list is accepted
without effect and named to the client.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from serve_app.openai.errors import unsupported_parameter
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


_REFUSED = _Refusal(_never, LEAVE_OUT)
_ANYWHERE = {
    "functions": _REFUSED,
    "function_call": _REFUSED,
    "modalities": _Refusal(_is(["text"]), 'Leave it out or set it to ["text"].'),
    "audio": _REFUSED,
    "web_search_options": _REFUSED,
    "chat_template": _REFUSED,
    "truncate_prompt_tokens": _REFUSED,
    "stop_regex": _REFUSED,
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
CHAT_REFUSALS = {
    **_ANYWHERE,
    "echo": _switch(False),
    "prompt_logprobs": _Refusal(_never, "Leave it out; /v1/completions has echo and logprobs."),
}
_CHATS = "Use /v1/chat/completions, or leave it out."
COMPLETION_REFUSALS = {
    **_ANYWHERE,
    "suffix": _Refusal(
        _is(""), "This model writes nothing into the middle of a text: put all of it into 'prompt'."
    ),
    "prompt_logprobs": _Refusal(_never, "Set 'echo' to true and 'logprobs' to a number."),
    "response_format": _Refusal(_is({"type": "text"}), _CHATS),
    "tools": _Refusal(_is([]), _CHATS),
    "tool_choice": _Refusal(_is("none"), _CHATS),
}


def take_unsupported(
    fields: dict[str, Any], refusals: Mapping[str, "_Refusal"] = CHAT_REFUSALS
) -> None:
    """Removes from a request's non-null fields those that ask for nothing.

    Raises:
        ApiError: a field asks for something that is not served, or has the wrong type.
    """
    for name in refusals.keys() & fields.keys():
        value = fields.pop(name)
        refusal = refusals[name]
        is_bool_for_number = isinstance(value, bool) and bool not in refusal.types
        if refusal.types and (is_bool_for_number or not isinstance(value, refusal.types)):
            raise wrong_type(name, refusal.expected, value)
        if not refusal.asks_nothing(value):
            raise unsupported_parameter(name, refusal.remedy)
