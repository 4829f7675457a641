"""The checks of LangChain's chat models, which differ in where they keep thoughts."""

from collections.abc import Callable
from typing import Any

import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_core.tools import tool
from pydantic import BaseModel

from tests.ecosystem.contract import (
    API_KEY,
    BASE_URL,
    CITIES,
    LONG_QUESTION,
    MODEL,
    NEXT_QUESTION,
    QUESTION,
    WEATHER_QUESTION,
    WRONG_KEY,
    Check,
    City,
    answers,
    raises,
    remembers,
    same,
    tell,
)


class Weather(BaseModel):
    """How the weather is in a city."""

    city: City


@tool
def weather(city: City) -> str:
    """How the weather is in a city."""
    return f"Sunny in {city}."


class ChatModel:
    """One chat model and what is asked of it. `thoughts` says where a message's thoughts are."""

    def __init__(self, kind: Any, thoughts: Callable[[Any], str], **options: Any) -> None:
        self.kind = kind
        self.thoughts = thoughts
        self.options = {"model": MODEL, "base_url": BASE_URL, "temperature": 0, **options}
        self.model = kind(api_key=API_KEY, max_tokens=300, **self.options)

    def chat(self) -> None:
        answers(self.model.invoke(QUESTION).content)

    def stream(self) -> None:
        answers("".join(piece.content for piece in self.model.stream(QUESTION)))

    def reasoning(self) -> str:
        return self.thoughts(self.model.invoke(QUESTION))

    def reasoning_streamed(self) -> str:
        first, *others = self.model.stream(QUESTION)
        return self.thoughts(sum(others, first))

    def usage(self) -> None:
        first, *others = self.model.stream(QUESTION, stream_usage=True)
        for message in (self.model.invoke(QUESTION), sum(others, first)):
            used = message.usage_metadata
            same(used["total_tokens"], used["input_tokens"] + used["output_tokens"])
            assert 0 < used["output_token_details"]["reasoning"] < used["output_tokens"]

    def json_schema(self) -> None:
        for method in ("json_schema", "function_calling"):
            asked = self.model.with_structured_output(Weather, method=method)
            assert asked.invoke(WEATHER_QUESTION).city in CITIES

    def tool_call(self) -> None:
        message = self.model.bind_tools([weather], tool_choice="any").invoke(WEATHER_QUESTION)
        same({call["name"] for call in message.tool_calls}, {"weather"})
        assert message.tool_calls[0]["args"]["city"] in CITIES
        results = [weather.invoke(call) for call in message.tool_calls]
        history = [("user", WEATHER_QUESTION), message, *results]
        assert self.model.invoke(history).content

    def wrong_key(self) -> None:
        stranger = self.kind(api_key=WRONG_KEY, **self.options)
        raises(openai.AuthenticationError, lambda: stranger.invoke(QUESTION))

    def too_long(self) -> None:
        raises(ContextOverflowError, lambda: self.model.invoke(LONG_QUESTION))

    def turns(self) -> None:
        reply = self.model.invoke(QUESTION)
        remembers(self.model.invoke([("user", QUESTION), reply, ("user", NEXT_QUESTION)]).content)

    def tell(self, distribution: str, note: str) -> None:
        checks: list[Check] = [
            self.chat,
            self.stream,
            self.reasoning,
            self.reasoning_streamed,
            self.usage,
            self.json_schema,
            self.tool_call,
            self.wrong_key,
            self.too_long,
            self.turns,
        ]
        tell(distribution, distribution, checks, note)
