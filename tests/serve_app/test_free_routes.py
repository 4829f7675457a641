"""Models, tokens and rendered chats: what costs nothing."""

import json
import random
from typing import Any

import httpx2 as httpx
import pytest

from cluster.text.tokenizer import (
    ASSISTANT,
    BOS,
    EOS,
    THINK_END,
    THINK_START,
    USER,
    Tokenizer,
)
from serve_app.openai.tokens import parse_detokenize_request, parse_tokenize_request
from tests.serve_app.site import CHAT, MODEL_ID, Site, error_of

pytestmark = pytest.mark.anyio
PIECES = [
    *(BOS, EOS, USER, ASSISTANT, THINK_START, THINK_END),
    *(
        "naïve",
        "日本語",
        "👩\u200d👩\u200d👧",
        "e\u0301",
        "\u0000",
        " \n\t",
        "\u202e",
        "\ufffd",
        "'",
    ),
]


def fragments(count: int) -> list[str]:
    """Seeded mixtures of markers, scripts, whitespace and arbitrary characters."""
    chance = random.Random(7)

    def piece() -> str:
        if chance.random() < 0.5:
            return chance.choice(PIECES)
        return chr(chance.choice([chance.randrange(0xD800), chance.randrange(0xE000, 0x110000)]))

    return ["".join(piece() for _ in range(chance.randrange(12))) for _ in range(count)]


async def post(site: Site, path: str, headers: dict[str, str], **body: Any) -> httpx.Response:
    return await site.client.post(path, json=body, headers=headers)


async def tokens_of(site: Site, headers: dict[str, str], **body: Any) -> list[int]:
    reply = await post(site, "/tokenize", headers, **body)
    assert reply.status_code == 200, reply.text
    tokens: list[int] = reply.json()["tokens"]
    assert reply.json()["count"] == len(tokens)
    return tokens


async def test_two_thousand_fragments_come_back_and_hold_no_control_id(
    site: Site, tokenizer: Tokenizer
) -> None:
    control = tokenizer.special_ids | {tokenizer.think_start_id, tokenizer.think_end_id}
    for text in fragments(2000):
        asked = json.dumps({"prompt": text}).encode()
        reply = await site.tokens.tokenize(parse_tokenize_request(asked, MODEL_ID))
        tokens = json.loads(reply)["tokens"]
        assert tokens[0] == tokenizer.bos_id
        assert not control.intersection(tokens[1:])
        asked = json.dumps({"tokens": tokens}).encode()
        back = await site.tokens.detokenize(parse_detokenize_request(asked))
        assert json.loads(back) == {"prompt": text}


async def test_a_raw_prompt_begins_with_the_token_that_begins_all(
    site: Site, tokenizer: Tokenizer
) -> None:
    headers = await site.bearer()
    bare = await tokens_of(site, headers, prompt="hello", add_special_tokens=False)
    full = await tokens_of(site, headers, prompt="hello", model=MODEL_ID)
    assert full == [tokenizer.bos_id, *bare]
    back = await post(site, "/detokenize", headers, tokens=full)
    assert back.json() == {"prompt": "hello"}


async def test_a_chat_is_counted_as_it_is_charged(site: Site) -> None:
    await site.world.replica()
    headers = await site.bearer(rpm=60)
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "日本語 </think>"}]
    tokens = await tokens_of(site, headers, messages=messages)
    rendered = await post(site, f"{CHAT}/render", headers, model=MODEL_ID, messages=messages)
    assert rendered.json()["token_ids"] == tokens
    assert rendered.headers["x-ratelimit-remaining-requests"] == "60"
    answer = (await site.chat(headers, messages=messages)).json()
    assert answer["usage"]["prompt_tokens"] == len(tokens)


async def test_the_texts_of_tokens_are_told_when_asked_for(site: Site) -> None:
    headers = await site.bearer()
    reply = await post(site, "/tokenize", headers, prompt="hello you", return_token_strs=True)
    strings = reply.json()["token_strs"]
    assert len(strings) == reply.json()["count"]
    assert "".join(strings).endswith("hello you")


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"prompt": "a", "model": "gpt-4"}, 404, "model"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "model": "x"}, 404, "model"),
        ("/detokenize", {"tokens": [1], "model": "x"}, 404, "model"),
        ("/detokenize", {"tokens": [0, 10**6]}, 400, "tokens[1]"),
        ("/detokenize", {}, 400, "tokens"),
        (f"{CHAT}/render", {"model": MODEL_ID}, 400, "messages"),
        (
            f"{CHAT}/render",
            {"model": MODEL_ID, "messages": [{"role": "user", "content": ""}], "max_tokens": 4096},
            400,
            "messages",
        ),
    ],
)
async def test_a_wrong_request_is_refused_by_name(
    site: Site, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    reply = await post(site, path, await site.bearer(), **body)
    assert reply.status_code == status
    assert error_of(reply)["param"] == param


async def test_a_rendered_chat_names_what_is_ignored_and_what_is_not_advised(site: Site) -> None:
    reply = await site.client.post(
        f"{CHAT}/render",
        json={"model": MODEL_ID, "messages": [{"role": "user", "content": "hi"}], "colour": 1},
        headers=await site.bearer(),
    )
    body = reply.json()
    assert reply.headers["x-deeprequest-ignored"] == "colour"
    assert [warning["code"] for warning in body["warnings"]] == ["max_tokens_few"]
    assert body["prompt"].endswith(f"{ASSISTANT}{THINK_START}\n")
    assert await site.counted() == {}
