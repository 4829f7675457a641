"""Tool calls as text: how tools, calls and results are written for a model that was taught none.

Owns the words: what is put in front of a conversation, how a call of the past and its result are
shown, and the grammar of an answer that may or must hold calls. R1's own template shows tools to
nobody, and its markers are no tokens of the distilled models. Refuses to know HTTP, and how calls
are found in an answer: that is `tool_reader`'s matter.

    <tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>

Everything but the name and the arguments is literal, so a reader needs no tolerance.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cluster.text.json_grammar import json_rule

CALL_START = "<tool_call>"
CALL_END = "</tool_call>"
NAME_START = '{"name": "'
ARGUMENTS_START = '", "arguments": '
ARGUMENTS_END = "}"
MAX_CALLS = 16
"""In one answer."""

_INTRODUCTION = """\
You can call functions. These are available, one JSON object a line:
{tools}

To call a function, answer with its name and its arguments in this form, and nothing behind it:
{example}
{rules} The result of each call comes back between <tool_response> and </tool_response>."""
_EXAMPLE = f"{CALL_START}{NAME_START}NAME{ARGUMENTS_START}ARGUMENTS{ARGUMENTS_END}{CALL_END}"


class Tool(NamedTuple):
    """A function that the model may call."""

    name: str
    """Letters, digits, underscores and dashes."""
    description: str
    parameters: Mapping[str, Any]
    """A JSON Schema of objects."""


class CallRule(NamedTuple):
    """Whether an answer holds calls."""

    required: bool
    """Whether there must be one."""
    parallel: bool
    """Whether there may be several."""


def introduction(tools: Sequence[Tool], rule: CallRule) -> str:
    """What the model is told of the tools."""
    lines = (
        json.dumps(
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            ensure_ascii=False,
        )
        for tool in tools
    )
    rules = "Call one function at most." if not rule.parallel else "Call as many as you need."
    if rule.required:
        rules = f"You must call a function. {rules}" if rule.parallel else "You must call one."
    return _INTRODUCTION.format(tools="\n".join(lines), example=_EXAMPLE, rules=rules)


def written_call(name: str, arguments: str) -> str:
    """A call as the model writes it; `arguments` are JSON, or nothing where there were none."""
    told = arguments.strip() or "{}"
    return f"{CALL_START}{NAME_START}{name}{ARGUMENTS_START}{told}{ARGUMENTS_END}{CALL_END}"


def written_results(results: Sequence[str]) -> str:
    """The results of a turn's calls, as the next user's turn."""
    return "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)


def answer_with_calls(
    tools: Sequence[Tool], rule: CallRule, schema: Mapping[str, Any] | None = None
) -> str:
    """The grammar of an answer that calls.

    Args:
        tools: those that may be called.
        schema: what an answer without calls must be; None: any text, also in front of calls.
    """
    called = "first body" + (f" more{{0,{MAX_CALLS - 1}}}" if rule.parallel else "")
    first = f"first: /\\n{{0,2}}{CALL_START}/"
    if rule.required:
        lines = [f"start: {called}", first]
    elif schema is not None:
        lines = [f"start: /\\n{{0,2}}/ value | {called}", f"value: {json_rule(schema)}", first]
    else:
        # Lazy: where the marker is complete a call has begun, whatever TEXT could also be.
        first = f"first[lazy]: /(.|\\n)*{CALL_START}/"
        lines = [f"start: TEXT | {called}", "TEXT: /(.|\\n)*/", first]
    if rule.parallel:
        lines.append(f"more: /\\n{{0,2}}{CALL_START}/ body")
    lines.append("body: " + " | ".join(f"call_{place}" for place in range(len(tools))))
    for place, tool in enumerate(tools):
        head, tail = NAME_START + tool.name + ARGUMENTS_START, ARGUMENTS_END + CALL_END
        lines.append(f"call_{place}: {json.dumps(head)} arguments_{place} {json.dumps(tail)}")
        lines.append(f"arguments_{place}: {json_rule(tool.parameters)}")
    return "\n".join(lines) + "\n"
