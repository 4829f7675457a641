"""Pydantic AI: agents with typed answers; thoughts are ThinkingParts, split off by it or by us."""

from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.messages import ModelResponse, ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.ecosystem.contract import (
    API_KEY,
    BASE_URL,
    CITIES,
    MODEL,
    NEXT_QUESTION,
    PERSON,
    PERSON_QUESTION,
    QUESTION,
    SPLIT,
    WEATHER_QUESTION,
    WRONG_KEY,
    City,
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


class Weather(BaseModel):
    """How the weather is in a city."""

    city: City


def agent(key: str = API_KEY, **options: Any) -> Any:
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=key))
    return Agent(model, model_settings={"temperature": 0, "max_tokens": 300}, **options)


def thoughts(response: ModelResponse, answer: str) -> str:
    parts = [part.content for part in response.parts if isinstance(part, ThinkingPart)]
    return thoughts_apart("".join(parts), answer)


def chat() -> None:
    answers(agent().run_sync(QUESTION).output)


async def stream() -> None:
    async with agent().run_stream(QUESTION) as run:
        answers("".join([piece async for piece in run.stream_text(delta=True)]))


def reasoning() -> str:
    by_tags = agent().run_sync(QUESTION)
    thoughts(by_tags.response, by_tags.output)
    split = agent().run_sync(QUESTION, model_settings={"extra_body": SPLIT})
    return thoughts(split.response, split.output)


async def reasoning_streamed() -> str:
    async with agent().run_stream(QUESTION, model_settings={"extra_body": SPLIT}) as run:
        answer = await run.get_output()
    return thoughts(run.response, answer)


def usage() -> None:
    used = agent().run_sync(QUESTION).usage
    assert 0 < used.details["reasoning_tokens"] < used.output_tokens


def json_schema() -> None:
    same(agent(output_type=NativeOutput(Person)).run_sync(PERSON_QUESTION).output, Person(**PERSON))


def tool_call() -> None:
    assert agent(output_type=Weather).run_sync(WEATHER_QUESTION).output.city in CITIES


def wrong_key() -> None:
    raises(ModelHTTPError, lambda: agent(WRONG_KEY).run_sync(QUESTION))


def turns() -> None:
    history = agent().run_sync(QUESTION).all_messages()
    remembers(agent().run_sync(NEXT_QUESTION, message_history=history).output)


tell(
    "pydantic-ai",
    "pydantic-ai-slim",
    [chat, stream, reasoning, reasoning_streamed, usage, json_schema, tool_call, wrong_key, turns],
    "`OpenAIChatModel`; splits off `<think>` by itself; typed answers by call or `NativeOutput`",
)
