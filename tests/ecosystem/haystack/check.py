"""Haystack's OpenAIChatGenerator: thoughts are left in the text, other fields are not read."""

import os
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

import json

import openai
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from haystack.utils import Secret
from pydantic import BaseModel

from tests.ecosystem.contract import (
    API_KEY,
    BASE_URL,
    CITIES,
    MODEL,
    NEXT_QUESTION,
    PERSON,
    PERSON_QUESTION,
    QUESTION,
    WEATHER_QUESTION,
    WEATHER_SCHEMA,
    WRONG_KEY,
    answers,
    raises,
    remembers,
    same,
    tell,
    thoughts_in_text,
)


class Person(BaseModel):
    name: str
    age: int


def weather(city: str) -> str:
    return f"Sunny in {city}."


def ask(question: str | list[Any] = QUESTION, *, key: str = API_KEY, **more: Any) -> Any:
    streaming = more.pop("streaming_callback", None)
    generator = OpenAIChatGenerator(
        api_key=Secret.from_token(key),
        api_base_url=BASE_URL,
        model=MODEL,
        streaming_callback=streaming,
        generation_kwargs={"temperature": 0, "max_tokens": 300, **more.pop("fields", {})},
        **more,
    )
    asked = [ChatMessage.from_user(question)] if isinstance(question, str) else question
    return generator.run(messages=asked)["replies"][0]


def streamed() -> str:
    pieces: list[str] = []
    ask(streaming_callback=lambda chunk: pieces.append(chunk.content))
    return "".join(pieces)


def chat() -> None:
    answers(ask().text)


def stream() -> None:
    answers(streamed())


def reasoning() -> str:
    return thoughts_in_text(ask().text)


def reasoning_streamed() -> str:
    return thoughts_in_text(streamed())


def usage() -> None:
    used = ask().meta["usage"]
    assert 0 < used["completion_tokens_details"]["reasoning_tokens"] < used["completion_tokens"]


def json_schema() -> None:
    reply = ask(PERSON_QUESTION, fields={"response_format": Person})
    same(json.loads(reply.text), PERSON)


def tool_call() -> None:
    tool = Tool(
        name="weather",
        description="How the weather is in a city.",
        parameters=WEATHER_SCHEMA,
        function=weather,
    )
    reply = ask(WEATHER_QUESTION, tools=[tool], fields={"tool_choice": "required"})
    same(reply.tool_calls[0].tool_name, "weather")
    assert reply.tool_calls[0].arguments["city"] in CITIES


def wrong_key() -> None:
    raises(openai.AuthenticationError, lambda: ask(key=WRONG_KEY))


def turns() -> None:
    history = [ChatMessage.from_user(QUESTION), ask(), ChatMessage.from_user(NEXT_QUESTION)]
    remembers(ask(history).text)


tell(
    "haystack",
    "haystack-ai",
    [chat, stream, reasoning, reasoning_streamed, usage, json_schema, tool_call, wrong_key, turns],
    "`OpenAIChatGenerator(api_base_url=...)`; reads no field for thoughts, they are in the text",
)
