"""The checks of the official SDK for Python, whose versions 2 and 3 are asked the same."""

import json
from typing import Any

import openai
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
    thoughts_apart,
    thoughts_in_text,
)

client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY)


class Person(BaseModel):
    name: str
    age: int


def asked(question: str = QUESTION, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 300, **more}


def chat() -> None:
    thoughts_in_text(client.chat.completions.create(**asked()).choices[0].message.content)


def stream() -> None:
    pieces = client.chat.completions.create(**asked(), stream=True)
    thoughts_in_text("".join(piece.choices[0].delta.content or "" for piece in pieces))


def reasoning() -> str:
    reply = client.chat.completions.create(**asked(), extra_body=SPLIT)
    message = reply.choices[0].message
    same(message.reasoning_content, message.reasoning)
    return thoughts_apart(message.reasoning_content, message.content)


def reasoning_streamed() -> str:
    parts = {"content": "", "reasoning": "", "reasoning_content": ""}
    for piece in client.chat.completions.create(**asked(), stream=True, extra_body=SPLIT):
        for name in parts:
            parts[name] += getattr(piece.choices[0].delta, name, None) or ""
    same(parts["reasoning"], parts["reasoning_content"])
    return thoughts_apart(parts["reasoning"], parts["content"])


def usage() -> None:
    whole = client.chat.completions.create(**asked()).usage
    streamed = asked(stream=True, stream_options={"include_usage": True})
    *_, last = client.chat.completions.create(**streamed)
    for found in (whole, last.usage):
        same(found.total_tokens, found.prompt_tokens + found.completion_tokens)
        assert 0 < found.completion_tokens_details.reasoning_tokens < found.completion_tokens


def json_schema() -> None:
    question = asked(PERSON_QUESTION, response_format=Person)
    same(client.chat.completions.parse(**question).choices[0].message.parsed, Person(**PERSON))
    with client.chat.completions.stream(**question) as events:
        parsed = events.get_final_completion().choices[0].message.parsed
    same(parsed, Person(**PERSON))


def tool_call() -> None:
    question = asked(WEATHER_QUESTION, tools=[WEATHER_TOOL], tool_choice="required")
    choice = client.chat.completions.create(**question).choices[0]
    same(choice.finish_reason, "tool_calls")
    call = choice.message.tool_calls[0].function
    same(call.name, "weather")
    assert json.loads(call.arguments)["city"] in CITIES
    made = choice.message.model_dump(exclude_none=True)
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
        for call in choice.message.tool_calls
    ]
    history = [*question["messages"], made, *results]
    reply = client.chat.completions.create(**asked(messages=history, tools=[WEATHER_TOOL]))
    assert reply.choices[0].message.content or reply.choices[0].message.tool_calls


def wrong_key() -> None:
    stranger = client.with_options(api_key=WRONG_KEY)
    raises(openai.AuthenticationError, lambda: stranger.chat.completions.create(**asked()))


def too_long() -> None:
    try:
        client.chat.completions.create(**asked(LONG_QUESTION))
    except openai.BadRequestError as error:
        same(error.code, "context_length_exceeded")
    else:
        raise AssertionError("no BadRequestError")


def text_completion() -> None:
    prompted: dict[str, Any] = {
        "model": MODEL,
        "prompt": QUESTION,
        "temperature": 0,
        "max_tokens": 20,
    }
    whole = client.completions.create(**prompted).choices[0].text
    pieces = client.completions.create(**prompted, stream=True)
    same("".join(piece.choices[0].text for piece in pieces), whole)
    assert whole


def turns() -> None:
    reply = client.chat.completions.create(**asked(), extra_body=SPLIT).choices[0].message
    answers(reply.content)
    history = [*asked()["messages"], reply.model_dump(exclude_none=True)]
    history += [{"role": "user", "content": NEXT_QUESTION}]
    again = client.chat.completions.create(**asked(messages=history))
    remembers(again.choices[0].message.content)


CHECKS = (
    chat,
    stream,
    reasoning,
    reasoning_streamed,
    usage,
    json_schema,
    tool_call,
    wrong_key,
    too_long,
    text_completion,
    turns,
)
NOTE = '`extra_body={"reasoning_format": "split"}`, then `message.reasoning_content`'
