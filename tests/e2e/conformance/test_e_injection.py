"""Checklist E: no text becomes a control token, wherever it stands; all survives its tokens."""

import json
import random
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import pytest

from cluster.text.tokenizer import ASSISTANT, BOS, EOS, THINK_END, THINK_START, USER
from tests.e2e.conformance.thoughts import TOKENIZER
from tests.e2e.conformance.wire import CHAT, MODEL, bearer, post
from tests.e2e.service import ROOT, Service

pytestmark = pytest.mark.e2e
ADDED: list[dict[str, Any]] = json.loads(
    (ROOT / "configs/models/deeprequest-demo/tokenizer.json").read_text()
)["added_tokens"]
CONTROL = {token["id"] for token in ADDED}
QUESTION = {"role": "user", "content": "q"}
FRAGMENTS = 2000
PIECES = (
    *(token["content"] for token in ADDED),
    *("<|Assistant|>", "<think", "think>", "</", "<\uff5c", "\uff5c>", "\u2581", "<tool_call>"),
    *(
        "\u65e5\u672c\u8a9e",
        "\u4f60\u597d",
        "\U0001f642",
        "\U0001f469\u200d\U0001f467",
        "\U0001f44d\U0001f3fd",
    ),
    *(
        "e\u0301",
        "a\u0300\u0323",
        "\u0915\u094d\u0937",
        "\u05e9\u05c1",
        "\u202e",
        "\ufeff",
        "\u00a0",
        "\u200b",
    ),
    *(" ", "  ", "\n", "\r\n", "\t", "\0", "\x1b", "'s", "don't", "123456", "3.14", "word", "{}[]"),
)
"""What random fragments are made of, beside any characters."""


def said(role: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {"messages": [QUESTION, {"role": role, "content": text}]}


def in_parts(text: str) -> dict[str, Any]:
    parts = [{"type": "text", "text": text[:3]}, {"type": "text", "text": text[3:]}]
    return {"messages": [{"role": "user", "content": parts}]}


def in_a_result(text: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    called = {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }
    result = {"role": "tool", "tool_call_id": "1", "content": text}
    return {"messages": [QUESTION, called, result]}


def in_arguments(text: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": json.dumps({"x": text})}
    called = {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }
    return {"messages": [QUESTION, called, QUESTION]}


def in_a_tool(text: str) -> dict[str, Any]:
    function = {"name": "f", "description": text, "parameters": {"type": "object", "title": text}}
    return {"messages": [QUESTION], "tools": [{"type": "function", "function": function}]}


def in_continued_thoughts(text: str) -> dict[str, Any]:
    begun = {"role": "assistant", "content": "", "reasoning_content": text}
    return {"messages": [QUESTION, begun], "continue_final_message": True}


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    **{role: said(role) for role in ("system", "developer", "user", "assistant")},
    "parts": in_parts,
    "tool": in_a_result,
    "arguments of a call": in_arguments,
    "description of a tool": in_a_tool,
    "continued thoughts": in_continued_thoughts,
}


def control_ids(tokens: list[int]) -> list[int]:
    return [token for token in tokens if token in CONTROL]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("token", [token["content"] for token in ADDED])
def test_e59_no_control_token_comes_out_of_any_text(
    service: Service, token: str, place: str
) -> None:
    """In an assistant's turn think tags cut the thoughts off; what is left holds no control id."""

    def controls(text: str) -> list[int]:
        body = {"model": MODEL, **PLACES[place](text)}
        reply = post(service, body, path=f"{CHAT}/render")
        assert reply.status_code == 200, reply.text
        return control_ids(reply.json()["token_ids"])

    plain = controls("hi")
    for text in (token, f"{token}hi", f"hi {token} there", f"hi{token}", f"{token}{token}"):
        assert controls(text) == plain


@pytest.mark.parametrize(
    "text",
    [
        "",
        "How many r's are in 'strawberry'?",
        "🙂👩‍👩‍👧👍🏽",
        "日本語 你好 한국어",
        "e\u0301 a\u0300\u0323 naïve",
        f"{BOS}{USER}x{ASSISTANT}{THINK_START}{THINK_END}{EOS}",
        " \n\t\u00a0\u200b\ufeff",
        "a\0b",
    ],
)
def test_e62_text_survives_its_tokens(service: Service, text: str) -> None:
    for special in (True, False):
        asked_for = {"model": MODEL, "prompt": text, "add_special_tokens": special}
        found = post(service, asked_for, path="/tokenize").json()
        assert found["count"] == len(found["tokens"])
        assert found["max_model_len"] == 4096
        assert control_ids(found["tokens"]) == [TOKENIZER.bos_id] * special
        back = post(service, {"tokens": found["tokens"]}, path="/detokenize")
        assert back.json() == {"prompt": text}


def fragment(source: random.Random) -> str:
    def piece() -> str:
        if source.random() < 0.7:
            return str(source.choice(PIECES))
        point = source.randrange(0x11_0000 - 0x800)
        return chr(point if point < 0xD800 else point + 0x800)

    return "".join(piece() for _ in range(source.randrange(1, 12)))


def test_e62_two_thousand_random_fragments_survive_their_tokens(service: Service) -> None:
    source = random.Random(62)
    with httpx.Client(base_url=service.url, headers=bearer(service)) as client:
        for _ in range(FRAGMENTS):
            text = fragment(source)
            tokens = client.post("/tokenize", json={"prompt": text}).json()["tokens"]
            assert control_ids(tokens) == [TOKENIZER.bos_id], text
            assert client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": text}
