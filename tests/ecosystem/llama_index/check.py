"""llama-index, by its openai-like model: thoughts are ThinkingBlocks."""

import json
from typing import Any

import openai
from llama_index.core.base.llms.types import ThinkingBlock
from llama_index.core.llms import ChatMessage, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
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


def weather(city: City) -> str:
    """How the weather is in a city."""
    return f"Sunny in {city}."


def model(key: str = API_KEY, **more: Any) -> Any:
    return OpenAILike(
        model=MODEL,
        api_base=BASE_URL,
        api_key=key,
        is_chat_model=True,
        is_function_calling_model=True,
        should_use_structured_outputs=True,
        context_window=4096,
        max_tokens=300,
        temperature=0,
        **more,
    )


llm = model()
split = model(additional_kwargs={"extra_body": SPLIT})
asked = [ChatMessage(role="user", content=QUESTION)]


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.blocks if isinstance(block, TextBlock))


def thoughts_of(message: Any) -> str:
    blocks = [block for block in message.blocks if isinstance(block, ThinkingBlock)]
    return "".join(block.content for block in blocks)


def chat() -> None:
    answers(text_of(llm.chat(asked).message))


def stream() -> None:
    answers("".join(piece.delta or "" for piece in llm.stream_chat(asked)))


def reasoning() -> str:
    message = split.chat(asked).message
    return thoughts_apart(thoughts_of(message), text_of(message))


def reasoning_streamed() -> str:
    *_, last = split.stream_chat(asked)
    return thoughts_apart(thoughts_of(last.message), text_of(last.message))


def usage() -> None:
    used = llm.chat(asked).raw.usage
    assert 0 < used.completion_tokens_details.reasoning_tokens < used.completion_tokens


def json_schema() -> None:
    same(llm.as_structured_llm(Person).complete(PERSON_QUESTION).raw, Person(**PERSON))


def tool_call() -> None:
    tools = [FunctionTool.from_defaults(weather)]
    reply = llm.chat_with_tools(tools, WEATHER_QUESTION, tool_required=True)
    calls = llm.get_tool_calls_from_response(reply)
    same({call.tool_name for call in calls}, {"weather"})
    assert calls[0].tool_kwargs["city"] in CITIES, json.dumps(calls[0].tool_kwargs)


def wrong_key() -> None:
    raises(openai.AuthenticationError, lambda: model(WRONG_KEY).chat(asked))


def turns() -> None:
    history = [*asked, split.chat(asked).message, ChatMessage(role="user", content=NEXT_QUESTION)]
    remembers(text_of(llm.chat(history).message))


tell(
    "llama-index openai-like",
    "llama-index-llms-openai-like",
    [chat, stream, reasoning, reasoning_streamed, usage, json_schema, tool_call, wrong_key, turns],
    '`OpenAILike(additional_kwargs={"extra_body": {"reasoning_format": "split"}})`, then '
    "`ThinkingBlock`; `should_use_structured_outputs=True` for `response_format`",
)
