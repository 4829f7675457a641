"""The first minutes of a newcomer: the API page's examples, the documentation, honest counts."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.service import Service

pytestmark = pytest.mark.e2e

SYSTEM = {"role": "system", "content": "You are a helpful assistant that thinks step by step."}
WORDS = [
    ("strawberry", "r"),
    ("mississippi", "s"),
    ("banana", "a"),
    ("raspberry", "r"),
    ("committee", "t"),
    ("bookkeeper", "e"),
    ("kubernetes", "e"),
    ("parallelism", "l"),
    ("engine", "n"),
    ("window", "w"),
    ("coffee", "f"),
    ("balloon", "o"),
    ("pepper", "p"),
    ("assassin", "s"),
    ("tomorrow", "o"),
    ("letter", "t"),
]


def question(word: str, letter: str) -> list[dict[str, str]]:
    return [SYSTEM, {"role": "user", "content": f"How many {letter}'s are in the word '{word}'?"}]


def asked(word: str, letter: str) -> dict[str, Any]:
    return {
        "model": "deepseek-r1-32b",
        "messages": question(word, letter),
        "temperature": 0.6,
        "max_tokens": 500,
    }


def count_in(answer: str) -> int:
    """The last number of the text behind the thinking."""
    numbers = re.findall(r"\d+", answer.split("</think>")[-1])
    return int(numbers[-1]) if numbers else -1


def test_the_standard_example_prints_a_trace_and_the_right_count(service: Service) -> None:
    response = service.client().chat.completions.create(**asked("strawberry", "r"))
    content = response.choices[0].message.content
    assert content.startswith("<think>\n")
    assert content.count("</think>") == 1
    assert count_in(content) == 3
    assert response.choices[0].finish_reason == "stop"
    usage = response.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def test_the_streaming_example_prints_the_same_kind_of_answer(service: Service) -> None:
    stream = service.client().chat.completions.create(**asked("strawberry", "r"), stream=True)
    content = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert content.startswith("<think>\n")
    assert count_in(content) == 3


def test_unseen_words_are_counted_rightly_sixteen_at_a_time(service: Service) -> None:
    client = service.client()

    def right(case: tuple[int, tuple[str, str]]) -> bool:
        index, (word, letter) = case
        if index % 2:
            stream = client.chat.completions.create(**asked(word, letter), stream=True)
            content = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        else:
            reply = client.chat.completions.create(**asked(word, letter))
            content = reply.choices[0].message.content or ""
        return count_in(content) == word.count(letter)

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(right, enumerate(WORDS)))
    assert sum(results) >= len(WORDS) - 1


def test_models_are_listed_and_retrieved(service: Service) -> None:
    client = service.client()
    assert [model.id for model in client.models.list()] == ["deepseek-r1-32b"]
    assert client.models.retrieve("deepseek-r1-32b").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nope")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/docs", "/redoc", "/openapi.json", "/metrics"]
)
def test_public_pages_answer_without_a_key(service: Service, path: str) -> None:
    status, body = service.get(path)
    assert status == 200
    assert body


def test_documentation_loads_nothing_from_elsewhere(service: Service) -> None:
    for path in ("/docs", "/redoc"):
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", service.get(path)[1])


def test_the_demo_model_is_named_honestly(service: Service) -> None:
    raw = service.client().chat.completions.with_raw_response.create(**asked("banana", "a"))
    assert raw.headers["x-deeprequest-model"] == "deeprequest-demo"
    assert raw.headers["x-request-id"]
