"""Checklist F, item 66, for any mixture of sampling fields: streams, joined, are whole answers.

Each case is drawn from its number. All run at once, whole and streamed, so that penalised, biased
and plain rows share steps, drafts and ranks; some run alone again.
"""

import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conformance.wire import asked, chunks, post
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e

NUM_CASES = 60
QUESTIONS = [
    "Spell the word 'engine'.",
    "Count from 1 to 20",
    "How many r's are in the word 'strawberry'?",
    "Say 🍓🍓",
]


def case(number: int) -> dict[str, Any]:
    """A request that asks for about half of what there is."""
    source = random.Random(number)
    options: list[dict[str, Any]] = [
        {"temperature": source.choice([0.6, 1.5]), "top_p": source.choice([0.9, 1])},
        {"frequency_penalty": source.choice([0.5, 2, -0.5])},
        {"presence_penalty": source.choice([1, -1])},
        {"repetition_penalty": source.choice([1.2, 0.8])},
        {"penalty_scope": "all"},
        {"logit_bias": {str(source.randrange(650)): source.choice([-100, 5]) for _ in range(20)}},
        {"logprobs": True, "top_logprobs": source.randrange(4)},
        {"return_token_ids": True},
        {"reasoning_format": source.choice(["split", "hidden"])},
        {"n": source.choice([2, 3])},
        {"ignore_eos": True},
        {"min_tokens": 25},
        {"thinking_budget": source.choice([3, 10])},
        {"stop": ["a", "3"], "stop_scope": source.choice(["answer", "all"])},
    ]
    fields = {"max_tokens": source.choice([30, 80, 150]), "seed": number}
    for option in source.sample(options, source.randrange(2, 9)):
        fields |= option
    return asked(source.choice(QUESTIONS), **fields)


def whole(service: Service, number: int) -> list[dict[str, Any]]:
    reply = post(service, case(number))
    assert reply.status_code == 200, reply.text
    return list(reply.json()["choices"])


def streamed(service: Service, number: int) -> list[dict[str, Any]]:
    """The choices of a stream, put together."""
    joined: dict[int, dict[str, Any]] = defaultdict(
        lambda: {"content": "", "reasoning": "", "entries": [], "token_ids": []}
    )
    for chunk in chunks(service, case(number)):
        for choice in chunk["choices"]:
            into = joined[choice["index"]]
            into["content"] += choice["delta"].get("content", "")
            into["reasoning"] += choice["delta"].get("reasoning", "")
            into["entries"] += (choice["logprobs"] or {"content": []})["content"]
            into["token_ids"] += choice.get("token_ids", [])
            into |= {name: choice.get(name) for name in ("finish_reason", "stop_reason")}
    return [told(joined[index]) for index in sorted(joined)]


def flat(choice: dict[str, Any]) -> dict[str, Any]:
    """A whole choice in the shape of a joined one."""
    return {
        "content": choice["message"]["content"],
        "reasoning": choice["message"].get("reasoning", ""),
        "entries": (choice["logprobs"] or {"content": []})["content"],
        "token_ids": choice.get("token_ids", []),
        "finish_reason": choice["finish_reason"],
        "stop_reason": choice["stop_reason"],
    }


def told(choice: dict[str, Any]) -> dict[str, Any]:
    """Without the logprobs themselves, whose last digits depend on what else is computed."""
    return choice | {"entries": [(entry["token"], entry["bytes"]) for entry in choice["entries"]]}


def test_f66_streams_joined_are_the_whole_answer_under_any_mixture(service: Service) -> None:
    with ThreadPoolExecutor(24) as pool:
        wholes = list(pool.map(lambda number: whole(service, number), range(NUM_CASES)))
        streams = list(pool.map(lambda number: streamed(service, number), range(NUM_CASES)))
    answers = [[told(flat(choice)) for choice in choices] for choices in wholes]
    assert streams == answers
    for number in range(0, NUM_CASES, 6):
        assert [told(flat(choice)) for choice in whole(service, number)] == answers[number]
    for choices in wholes:
        for choice in choices:
            if choice["logprobs"] is not None:
                data = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
                assert data.decode(errors="replace") == choice["message"]["content"]
