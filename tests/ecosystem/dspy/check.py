"""DSPy's language model. Its predictors' long prompts are beyond the demo model."""

import json
from typing import Any

import dspy

from tests.ecosystem.contract import (
    API_KEY,
    BASE_URL,
    LONG_QUESTION,
    MODEL,
    NEXT_QUESTION,
    PERSON,
    PERSON_QUESTION,
    PERSON_SCHEMA,
    QUESTION,
    SPLIT,
    WRONG_KEY,
    answers,
    raises,
    remembers,
    same,
    tell,
    thoughts_apart,
)


def model(key: str = API_KEY, **more: Any) -> Any:
    return dspy.LM(
        f"openai/{MODEL}",
        api_base=BASE_URL,
        api_key=key,
        temperature=0,
        max_tokens=300,
        cache=False,
        num_retries=0,
        **more,
    )


def chat() -> None:
    answers(model()(QUESTION)[0])


def reasoning() -> str:
    (reply,) = model(extra_body=SPLIT)(QUESTION)
    return thoughts_apart(reply["reasoning_content"], reply["text"])


def usage() -> None:
    asked = model()
    asked(QUESTION)
    used = asked.history[-1]["usage"]
    assert 0 < used["completion_tokens_details"]["reasoning_tokens"] < used["completion_tokens"]


def json_schema() -> None:
    form = {"name": "person", "schema": PERSON_SCHEMA, "strict": True}
    response_format = {"type": "json_schema", "json_schema": form}
    (reply,) = model()(PERSON_QUESTION, response_format=response_format)
    same(json.loads(reply["text"]), PERSON)


def wrong_key() -> None:
    raises(dspy.LMAuthError, lambda: model(WRONG_KEY)(QUESTION))


def too_long() -> None:
    raises(dspy.ContextWindowExceededError, lambda: model()(LONG_QUESTION))


def turns() -> None:
    (reply,) = model()(QUESTION)
    history = [("user", QUESTION), ("assistant", reply), ("user", NEXT_QUESTION)]
    messages = [{"role": role, "content": text} for role, text in history]
    remembers(model()(messages=messages)[0])


tell(
    "dspy",
    "dspy",
    [chat, reasoning, usage, json_schema, wrong_key, too_long, turns],
    '`dspy.LM("openai/deepseek-r1-32b", extra_body={"reasoning_format": "split"})`',
)
