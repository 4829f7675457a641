"""What the clients of the matrix are asked, and how a check tells what came of it.

Runs inside a client's own environment: knows the standard library and the demo model's tricks, no
client and no server. A check is a script `tests/ecosystem/CLIENT/check.py` that ends in `tell`;
`contract.mjs` is the same for Node. The service's address and keys come in variables, and the last
line of standard output is one JSON object:

    {"client": "litellm", "version": "1.2.3", "checks": {"chat": "ok", "stream": "what went wrong"},
     "reasoning": "as reasoning" | "in text" | "lost" | "n/a", "note": "what its users should know"}

The exit code is 0 if every check is "ok". A check that a client cannot be put to is left out.
"""

import asyncio
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, Literal

BASE_URL = os.environ["DEEPREQUEST_BASE_URL"]
"""Ends in /v1, as clients want it."""
API_KEY = os.environ["DEEPREQUEST_API_KEY"]
SPLIT_API_KEY = os.environ["DEEPREQUEST_SPLIT_API_KEY"]
"""A key with --reasoning-format split, for clients that send no field which they do not know."""
WRONG_KEY = "sk-of-nobody"
MODEL = "deepseek-r1-32b"

QUESTION = "How many r's are in the word 'strawberry'?"
NEXT_QUESTION = "Which word did I ask about?"
LONG_QUESTION = "strawberry " * 4_000
"""More than the demo model's context holds."""
PERSON_QUESTION = "Give me a JSON object with name Ada and age 36."
PERSON = {"name": "Ada", "age": 36}
PERSON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER_QUESTION = "How is the weather in Rome?"
City = Literal["Rome", "Oslo"]
"""What the one tool, weather(city), takes: the demo model fills in forms and understands none."""
CITIES = ("Rome", "Oslo")
WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": list(CITIES)}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How the weather is in a city.",
        "parameters": WEATHER_SCHEMA,
    },
}
SPLIT = {"reasoning_format": "split"}
"""Sent in `extra_body`, or however a client passes on fields that it does not know."""

OK = "ok"
AS_REASONING = "as reasoning"
"""The thoughts came where the client keeps thoughts."""
IN_TEXT = "in text"
"""The thoughts came as <think> ... </think> in front of the answer, the service's default."""
LOST = "lost"
NOT_APPLICABLE = "n/a"

Check = Callable[[], Any]
"""Named after what it shows; raises where the client does not. One that looks for the thoughts
returns where they were."""


def answers(text: str | None) -> None:
    """Raises AssertionError unless QUESTION is answered behind the thoughts, if there are any."""
    answer = (text or "").split("</think>")[-1]
    assert re.search(r"\b3\b", answer), f"no answer in {text!r}"


def remembers(text: str | None) -> None:
    """Raises AssertionError unless NEXT_QUESTION is answered, after a turn of QUESTION."""
    answer = (text or "").split("</think>")[-1]
    assert "strawberry" in answer, f"forgotten in {text!r}"


def thoughts_in_text(text: str | None) -> str:
    """IN_TEXT, if `text` begins with the thoughts about QUESTION in their tags."""
    found = re.match(r"<think>\n(.*?)</think>\n\n", text or "", re.DOTALL)
    assert found, f"no thoughts before {text!r}"
    return thoughts_apart(found.group(1)) and IN_TEXT


def thoughts_apart(thoughts: str | None, answer: str | None = "3") -> str:
    """AS_REASONING, if these are the thoughts about QUESTION and `answer` is free of them."""
    assert "Let me count the letter r" in (thoughts or ""), f"not the thoughts: {thoughts!r}"
    assert "10: y 3" in (thoughts or ""), f"not all of the thoughts: {thoughts!r}"
    assert "think>" not in f"{thoughts}{answer}", "tags are left"
    answers(answer)
    return AS_REASONING


def same(found: Any, expected: Any) -> None:
    """Raises AssertionError with both."""
    assert found == expected, f"{found!r} instead of {expected!r}"


def raises(kind: type[BaseException] | tuple[type[BaseException], ...], call: Check) -> None:
    """Raises AssertionError unless `call` raises the client's own error."""
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind}")


def tell(client: str, distribution: str, checks: Sequence[Check], note: str = "") -> None:
    """Run the checks in their order, print the JSON line, and leave with the exit code."""
    told: dict[str, str] = {}
    seen: list[str] = []
    with asyncio.Runner() as loop:
        for check in checks:
            name = check.__name__.replace("_", " ")
            told[name], place = _outcome(check, loop)
            seen += [place] if place else []
            seen += [LOST] if name.startswith("reasoning") and told[name] != OK else []
    line = {
        "client": client,
        "version": metadata.version(distribution),
        "checks": told,
        "reasoning": _worst(seen),
        "note": note,
    }
    print(json.dumps(line), flush=True)
    sys.exit(any(outcome != OK for outcome in told.values()))


def _outcome(check: Check, loop: asyncio.Runner) -> tuple[str, str | None]:
    """ "ok" or what went wrong, and where thoughts were seen."""
    try:
        place = check()
        if inspect.iscoroutine(place):
            place = loop.run(place)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}".splitlines()[0][:300], None
    return OK, place if isinstance(place, str) else None


def _worst(seen: Sequence[str]) -> str:
    """Thoughts that were lost once, whole or streamed, are lost."""
    return next((place for place in (LOST, IN_TEXT, AS_REASONING) if place in seen), NOT_APPLICABLE)
