"""What the tests of thinking say to the service and count in its replies."""

from typing import Any

from cluster.text.tokenizer import Tokenizer
from tests.e2e.conformance.wire import asked, chunks, post
from tests.e2e.service import ROOT, Service

TOKENIZER = Tokenizer(ROOT / "configs" / "models" / "deeprequest-demo")
END = TOKENIZER.think_end_id
STRAWBERRY = "How many r's are in the word 'strawberry'?"
"""The demo model thinks of it for about 40 tokens, and its answer has about 25."""
SPLIT: dict[str, Any] = {"reasoning_format": "split"}


def choice_of(service: Service, **fields: Any) -> dict[str, Any]:
    """The one choice of the reply to STRAWBERRY, or to what `fields` ask."""
    reply = post(service, asked(STRAWBERRY, **fields))
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    return dict(choice)


def usage_of(reply: dict[str, Any]) -> tuple[int, int]:
    """(completion tokens, reasoning tokens)"""
    usage = reply["usage"]
    return usage["completion_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]


def whole(service: Service, *, stream: bool, **fields: Any) -> dict[str, Any]:
    """A reply whose choices have their text, token ids and ends, sent in one piece or joined."""
    body = asked(STRAWBERRY, return_token_ids=True, **fields)
    if not stream:
        reply = post(service, body)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())
    found = chunks(service, body | {"stream_options": {"include_usage": True}})
    choices: dict[int, dict[str, Any]] = {}
    for part in (choice for chunk in found for choice in chunk["choices"]):
        choice = choices.setdefault(part["index"], {"message": {}, "token_ids": []})
        for name, text in part["delta"].items():
            choice["message"][name] = choice["message"].get(name, "") + text
        choice["token_ids"] += part.get("token_ids", [])
        choice |= {name: part[name] for name in ENDS if name in part}
    return {"choices": [choices[index] for index in sorted(choices)], "usage": found[-1]["usage"]}


ENDS = ("finish_reason", "stop_reason", "reasoning_truncated", "reasoning_stop")


def rendered(service: Service, messages: list[dict[str, Any]], **fields: Any) -> str:
    """The prompt that a chat would have, control tokens by their strings."""
    body = asked(messages=messages, **fields)
    reply = post(service, body, path="/v1/chat/completions/render")
    assert reply.status_code == 200, reply.text
    assert TOKENIZER.decode(reply.json()["token_ids"]) == reply.json()["prompt"]
    return str(reply.json()["prompt"])
