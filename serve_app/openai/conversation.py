"""A conversation as the chat template wants it: calls and their results written out.

Owns that every result answers a call, and where the tools are introduced. Refuses to know how a
call is written: that is `cluster.text.tool_calls`' matter.
"""

from collections.abc import Sequence

from cluster.text.template import Message
from cluster.text.tool_calls import introduction, written_call, written_results
from serve_app.openai.errors import invalid_value, missing_parameter
from serve_app.openai.messages import ChatMessage
from serve_app.openai.tools import Calling, is_function_name


def check_calls(messages: Sequence[ChatMessage]) -> None:
    """Raises ApiError for a call where none can be, and for the result of one that was not made."""
    asked: set[str] = set()
    for index, message in enumerate(messages):
        param = f"messages[{index}]"
        if message.tool_calls and message.role != "assistant":
            _refuse(f"{param}.tool_calls", "only messages of the role 'assistant' may hold calls")
        for place, call in enumerate(message.tool_calls or ()):
            if not is_function_name(call.function.name):
                name = f"{param}.tool_calls[{place}].function.name"
                _refuse(name, "must hold letters, digits, underscores and dashes only")
            asked.add(call.id)
        if message.role != "tool":
            continue
        if message.tool_call_id is None:
            raise missing_parameter(f"{param}.tool_call_id")
        if message.tool_call_id not in asked:
            _refuse(f"{param}.tool_call_id", "no call in an earlier message has this id")


def conversation(messages: Sequence[ChatMessage], calling: Calling | None) -> list[Message]:
    """The messages, calls behind the content of their turn and results as the user's next turn."""
    turns: list[Message] = []
    results: list[str] = []
    for message in messages:
        if message.role == "tool":
            results.append(message.text())
            continue
        turns += _answered(results)
        results = []
        turns.append(Message(message.role, message.text(), message.thoughts(), _calls(message)))
    turns += _answered(results)
    if calling is not None:
        turns.append(Message("system", introduction(*calling)))
    return turns


def _answered(results: list[str]) -> list[Message]:
    return [Message("user", written_results(results))] if results else []


def _calls(message: ChatMessage) -> str:
    calls = "\n".join(
        written_call(call.function.name, call.function.arguments)
        for call in message.tool_calls or ()
    )
    return f"\n\n{calls}" if calls and message.text() else calls


def _refuse(param: str, problem: str) -> None:
    raise invalid_value(param, f"Invalid value for '{param}': {problem}.")
