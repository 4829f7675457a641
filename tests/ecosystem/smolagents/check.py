"""smolagents' OpenAIModel: thoughts are left in the text."""

import json
from typing import Any, Literal

import openai
from smolagents import ChatMessage, OpenAIModel, tool

from tests.ecosystem.contract import (
    API_KEY,
    BASE_URL,
    CITIES,
    MODEL,
    NEXT_QUESTION,
    PERSON,
    PERSON_QUESTION,
    PERSON_SCHEMA,
    QUESTION,
    WEATHER_QUESTION,
    WRONG_KEY,
    answers,
    raises,
    remembers,
    same,
    tell,
    thoughts_in_text,
)


@tool
def weather(city: Literal["Rome", "Oslo"]) -> str:
    """How the weather is in a city.

    Args:
        city: The city.
    """
    return f"Sunny in {city}."


def model(key: str = API_KEY) -> Any:
    return OpenAIModel(MODEL, api_base=BASE_URL, api_key=key, temperature=0, max_tokens=300)


def said(role: str, text: str) -> ChatMessage:
    return ChatMessage(role=role, content=[{"type": "text", "text": text}])


asked = [said("user", QUESTION)]


def streamed() -> str:
    return "".join(piece.content or "" for piece in model().generate_stream(asked))


def chat() -> None:
    answers(model().generate(asked).content)


def stream() -> None:
    answers(streamed())


def reasoning() -> str:
    return thoughts_in_text(model().generate(asked).content)


def reasoning_streamed() -> str:
    return thoughts_in_text(streamed())


def usage() -> None:
    *_, last = model().generate_stream(asked)
    for message in (model().generate(asked), last):
        assert message.token_usage.output_tokens > 50


def json_schema() -> None:
    form = {"name": "person", "schema": PERSON_SCHEMA, "strict": True}
    response_format = {"type": "json_schema", "json_schema": form}
    reply = model().generate([said("user", PERSON_QUESTION)], response_format=response_format)
    same(json.loads(reply.content), PERSON)


def tool_call() -> None:
    reply = model().generate([said("user", WEATHER_QUESTION)], tools_to_call_from=[weather])
    call = reply.tool_calls[0].function
    same(call.name, "weather")
    assert json.loads(call.arguments)["city"] in CITIES


def wrong_key() -> None:
    raises(openai.AuthenticationError, lambda: model(WRONG_KEY).generate(asked))


def turns() -> None:
    reply = said("assistant", model().generate(asked).content)
    remembers(model().generate([*asked, reply, said("user", NEXT_QUESTION)]).content)


tell(
    "smolagents",
    "smolagents",
    [chat, stream, reasoning, reasoning_streamed, usage, json_schema, tool_call, wrong_key, turns],
    "`OpenAIModel(api_base=...)`; streams no field for thoughts, they are in the text",
)
