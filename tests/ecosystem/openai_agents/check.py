"""The OpenAI Agents SDK, on its chat completions model: thoughts are reasoning items of a run."""

from typing import Any

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    ToolCallOutputItem,
    function_tool,
    set_tracing_disabled,
)
from openai.types.responses import ResponseReasoningItem, ResponseTextDeltaEvent
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
    remembers,
    same,
    tell,
    thoughts_apart,
)

set_tracing_disabled(True)


class Person(BaseModel):
    name: str
    age: int


@function_tool
def weather(city: City) -> str:
    """How the weather is in a city."""
    return city


def agent(key: str = API_KEY, *, tool_choice: str | None = None, **options: Any) -> Any:
    service = openai.AsyncOpenAI(base_url=BASE_URL, api_key=key)
    model = OpenAIChatCompletionsModel(model=MODEL, openai_client=service)
    settings = ModelSettings(
        temperature=0, max_tokens=300, extra_body=SPLIT, include_usage=True, tool_choice=tool_choice
    )
    return Agent(name="Counter", model=model, model_settings=settings, **options)


def thoughts(run: Any) -> str:
    items = [item.raw_item for item in run.new_items]
    found = [item for item in items if isinstance(item, ResponseReasoningItem)]
    return thoughts_apart("".join(part.text for item in found for part in item.summary))


async def chat() -> None:
    answers((await Runner.run(agent(), QUESTION)).final_output)


async def stream() -> None:
    run = Runner.run_streamed(agent(), QUESTION)
    events = [
        event.data async for event in run.stream_events() if event.type == "raw_response_event"
    ]
    answers("".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent)))


async def reasoning() -> str:
    return thoughts(await Runner.run(agent(), QUESTION))


async def reasoning_streamed() -> str:
    run = Runner.run_streamed(agent(), QUESTION)
    async for _ in run.stream_events():
        pass
    return thoughts(run)


async def usage() -> None:
    used = (await Runner.run(agent(), QUESTION)).context_wrapper.usage
    assert 0 < used.output_tokens_details.reasoning_tokens < used.output_tokens


async def json_schema() -> None:
    run = await Runner.run(agent(output_type=Person), PERSON_QUESTION)
    same(run.final_output, Person(**PERSON))


async def tool_call() -> None:
    """The whole loop: a call, its result, and an answer that had it in the prompt."""
    run = await Runner.run(agent(tools=[weather], tool_choice="required"), WEATHER_QUESTION)
    results = [item.output for item in run.new_items if isinstance(item, ToolCallOutputItem)]
    assert set(results) <= set(CITIES), results
    assert results
    assert run.final_output


async def wrong_key() -> None:
    try:
        await Runner.run(agent(WRONG_KEY), QUESTION)
    except openai.AuthenticationError:
        return
    raise AssertionError("no AuthenticationError")


async def turns() -> None:
    first = await Runner.run(agent(), QUESTION)
    history = [*first.to_input_list(), {"role": "user", "content": NEXT_QUESTION}]
    remembers((await Runner.run(agent(), history)).final_output)


tell(
    "openai-agents",
    "openai-agents",
    [chat, stream, reasoning, reasoning_streamed, usage, json_schema, tool_call, wrong_key, turns],
    '`OpenAIChatCompletionsModel` with `extra_body={"reasoning_format": "split"}`, tracing off',
)
