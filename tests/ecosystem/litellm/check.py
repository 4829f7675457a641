"""litellm, as a library: the service is openai/MODEL to it."""

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from pydantic import BaseModel

from tests.ecosystem.contract import (
    API_KEY,
    BASE_URL,
    CITIES,
    LONG_QUESTION,
    MODEL,
    NEXT_QUESTION,
    PERSON,
    PERSON_QUESTION,
    QUESTION,
    SPLIT,
    WEATHER_QUESTION,
    WEATHER_TOOL,
    WRONG_KEY,
    answers,
    raises,
    remembers,
    same,
    tell,
    thoughts_apart,
)


class Person(BaseModel):
    name: str
    age: int


def ask(question: str = QUESTION, **more: Any) -> Any:
    asked = {
        "model": f"openai/{MODEL}",
        "api_base": BASE_URL,
        "api_key": API_KEY,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 300,
    }
    return litellm.completion(**{**asked, **more})


def chat() -> None:
    answers(ask().choices[0].message.content)


def stream() -> None:
    answers("".join(piece.choices[0].delta.content or "" for piece in ask(stream=True)))


def reasoning() -> str:
    by_tags = ask().choices[0].message
    thoughts_apart(by_tags.reasoning_content, by_tags.content)
    split = ask(extra_body=SPLIT).choices[0].message
    return thoughts_apart(split.reasoning_content, split.content)


def reasoning_streamed() -> str:
    pieces = list(ask(stream=True, extra_body=SPLIT))
    message = litellm.stream_chunk_builder(pieces).choices[0].message
    return thoughts_apart(message.reasoning_content, message.content)


def usage() -> None:
    *_, last = ask(stream=True, stream_options={"include_usage": True})
    for found in (ask().usage, last.usage):
        same(found.total_tokens, found.prompt_tokens + found.completion_tokens)
        assert 0 < found.completion_tokens_details.reasoning_tokens < found.completion_tokens


def json_schema() -> None:
    reply = ask(PERSON_QUESTION, response_format=Person)
    same(json.loads(reply.choices[0].message.content), PERSON)


def tool_call() -> None:
    choice = ask(WEATHER_QUESTION, tools=[WEATHER_TOOL], tool_choice="required").choices[0]
    same(choice.finish_reason, "tool_calls")
    (function,) = {call.function.name for call in choice.message.tool_calls}
    same(function, "weather")
    assert json.loads(choice.message.tool_calls[0].function.arguments)["city"] in CITIES


def wrong_key() -> None:
    raises(litellm.AuthenticationError, lambda: ask(api_key=WRONG_KEY))


def too_long() -> None:
    raises(litellm.ContextWindowExceededError, lambda: ask(LONG_QUESTION))


def turns() -> None:
    first = {"role": "user", "content": QUESTION}
    history = [first, ask().choices[0].message, {"role": "user", "content": NEXT_QUESTION}]
    remembers(ask(messages=history).choices[0].message.content)


tell(
    "litellm",
    "litellm",
    [
        chat,
        stream,
        reasoning,
        reasoning_streamed,
        usage,
        json_schema,
        tool_call,
        wrong_key,
        too_long,
        turns,
    ],
    "`openai/deepseek-r1-32b`; splits off `<think>` by itself where it does not stream, else "
    '`extra_body={"reasoning_format": "split"}`; `LITELLM_LOCAL_MODEL_COST_MAP=True` spares '
    "a download",
)
