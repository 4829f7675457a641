"""instructor: typed answers, by a schema, by JSON in the text and by a call."""

from typing import Any

import instructor
import openai
from instructor.core import InstructorRetryException
from pydantic import BaseModel

from tests.ecosystem.contract import (
    API_KEY,
    BASE_URL,
    CITIES,
    MODEL,
    PERSON,
    PERSON_QUESTION,
    QUESTION,
    WEATHER_QUESTION,
    WRONG_KEY,
    City,
    raises,
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


class Count(BaseModel):
    count: int


def client(mode: Any = instructor.Mode.JSON_SCHEMA, key: str = API_KEY) -> Any:
    return instructor.from_openai(openai.OpenAI(base_url=BASE_URL, api_key=key), mode=mode)


def asked(question: str, kind: type[BaseModel]) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "response_model": kind,
        "temperature": 0,
        "max_tokens": 300,
        "max_retries": 1,
    }


def json_schema() -> None:
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON, instructor.Mode.MD_JSON):
        person = client(mode).chat.completions.create(**asked(PERSON_QUESTION, Person))
        same(person.name, PERSON["name"])


def stream() -> None:
    *_, last = client().chat.completions.create_partial(**asked(PERSON_QUESTION, Person))
    same(last.model_dump(), PERSON)


def tool_call() -> None:
    by_call = client(instructor.Mode.TOOLS).chat.completions
    assert by_call.create(**asked(WEATHER_QUESTION, Weather)).city in CITIES


def reasoning() -> str:
    _, reply = client().chat.completions.create_with_completion(**asked(QUESTION, Count))
    return thoughts_apart(reply.choices[0].message.reasoning_content)


def usage() -> None:
    _, reply = client().chat.completions.create_with_completion(**asked(QUESTION, Count))
    used = reply.usage
    assert 0 < used.completion_tokens_details.reasoning_tokens < used.completion_tokens


def wrong_key() -> None:
    of_nobody = client(key=WRONG_KEY).chat.completions
    raises(
        (InstructorRetryException, openai.AuthenticationError),
        lambda: of_nobody.create(**asked(PERSON_QUESTION, Person)),
    )


tell(
    "instructor",
    "instructor",
    [stream, reasoning, usage, json_schema, tool_call, wrong_key],
    "thoughts are in the raw reply of `create_with_completion`; all modes of JSON and TOOLS work",
)
