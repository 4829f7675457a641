"""Keys, limits, hang-ups and killed ranks, seen from outside."""

import contextlib
import json
import os
import random
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.e2e.service import Service

pytestmark = pytest.mark.e2e

COUNTING = {
    "model": "deepseek-r1-32b",
    "messages": [{"role": "user", "content": "Count from 1 to 150"}],
    "max_tokens": 400,
    "ignore_eos": True,
    "stream": True,
}
BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"[" * 100_000,
    b'{"model": "deepseek-r1-32b", "messages": "\xff\xfe"}',
    b'{"model": "deepseek-r1-32b", "messages": [], "temperature": NaN}',
    b'{"model": "deepseek-r1-32b", "messages": []}',
    b'{"model": 7, "messages": [{"role": "user", "content": "hi"}]}',
    b'{"model": "nope", "messages": [{"role": "user", "content": "hi"}]}',
    b'{"messages": [{"role": "user", "content": "hi"}]}',
    b'{"model": "deepseek-r1-32b", "messages": [{"role": "user", "content": null}]}',
    b'{"model": "deepseek-r1-32b", "messages": [{"role": "nobody", "content": "hi"}]}',
    b'{"model": "deepseek-r1-32b", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "deepseek-r1-32b", "messages": [{"role": "user", "content": ""}], "seed": -1e400}',
    b"x" * (5 * 2**20),
]


def headers(service: Service, key: str | None = None) -> dict[str, str]:
    return {
        "authorization": f"Bearer {key or service.key}",
        "content-type": "application/json",
    }


def is_envelope(reply: httpx.Response) -> bool:
    body = reply.json()
    return set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}


def ask(service: Service, word: str = "banana") -> str:
    reply = service.client(max_retries=5).chat.completions.create(
        model="deepseek-r1-32b",
        messages=[{"role": "user", "content": f"How many a's are in the word '{word}'?"}],
        temperature=0,
        max_tokens=200,
    )
    return reply.choices[0].message.content or ""


def test_malformed_requests_get_envelopes_and_cost_nobody_anything(service: Service) -> None:
    expected = ask(service)
    with httpx.Client(base_url=service.url, headers=headers(service), timeout=30) as client:
        for body in BAD_BODIES:
            reply = client.post("/v1/chat/completions", content=body)
            assert 400 <= reply.status_code < 500, body[:80]
            assert is_envelope(reply), body[:80]
            assert ask(service) == expected
        for method, path in (
            ("GET", "/nope"),
            ("GET", "/v1/chat/completions"),
            ("PUT", "/v1/models"),
        ):
            reply = client.request(method, path)
            assert reply.status_code in (404, 405)
            assert is_envelope(reply)


def test_a_burst_gets_exactly_what_its_key_allows(service: Service) -> None:
    secret = service.cli("keys", "create", "--tenant", "burst", "--rpm", "5")["secret"]
    body = COUNTING | {"max_tokens": 2, "stream": False}

    def post(_: int) -> httpx.Response:
        url = f"{service.url}/v1/chat/completions"
        return httpx.post(url, json=body, headers=headers(service, secret), timeout=60)

    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(post, range(50)))
    statuses = [reply.status_code for reply in replies]
    assert statuses.count(200) == 5
    assert statuses.count(429) == 45
    for reply in replies:
        assert "x-ratelimit-limit-requests" in reply.headers
        if reply.status_code == 429:
            assert is_envelope(reply)
            assert reply.json()["error"]["code"] == "rate_limit_exceeded"
            assert 0 < float(reply.headers["retry-after"]) <= 110


def test_revoked_and_wrong_keys_are_refused(service: Service) -> None:
    created = service.cli("keys", "create", "--tenant", "short-lived")
    client = service.client(created["secret"])
    assert client.models.list().data
    service.cli("keys", "revoke", created["id"])
    for key in (created["secret"], "dr-wrong", created["secret"][:-1] + "x"):
        with pytest.raises(openai.AuthenticationError):
            service.client(key).chat.completions.create(
                model="deepseek-r1-32b", messages=[{"role": "user", "content": "hi"}]
            )


def test_streams_equal_the_unstreamed_text_of_their_seed(service: Service) -> None:
    client = service.client()

    def same(seed: int) -> bool:
        request: dict[str, Any] = {
            "model": "deepseek-r1-32b",
            "messages": [{"role": "user", "content": f"Spell the word 'engine{seed % 7}'"}],
            "temperature": 1.0,
            "seed": seed,
            "max_tokens": 60,
        }
        whole = client.chat.completions.create(**request)
        stream = client.chat.completions.create(**request, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        return bool(text == whole.choices[0].message.content)

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(same, range(64)))


def test_clients_that_hang_up_leave_nothing_running(service: Service) -> None:
    payload = json.dumps(COUNTING).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {service.key}\r\ncontent-length: {len(payload)}\r\n\r\n"
    ).encode()

    def hang_up(_: int) -> None:
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(head + payload)
            leave_at = time.monotonic() + random.uniform(0.01, 1.0)
            connection.settimeout(0.05)
            while time.monotonic() < leave_at:
                with contextlib.suppress(TimeoutError):
                    connection.recv(4096)

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(hang_up, range(100)))
    deadline = time.monotonic() + 2
    while service.metric("deeprequest_num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert service.metric("deeprequest_num_requests_running") == 0
    assert service.metric("deeprequest_kv_blocks_used") == 0


def test_a_killed_rank_ends_its_streams_with_an_error_and_comes_back(service: Service) -> None:
    expected = ask(service)
    ranks = service.cli("status")["replicas"][0]["ranks"]
    url = f"{service.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=COUNTING, headers=headers(service), timeout=60) as reply:
        events = reply.iter_lines()
        for _ in range(10):
            next(events)
        os.kill(ranks[1]["pid"], signal.SIGKILL)
        killed = time.monotonic()
        data = [line for line in events if line.startswith("data:")]
    assert "error" in json.loads(data[-1].removeprefix("data:"))
    assert not any("[DONE]" in line for line in data)
    while service.get("/ready")[0] == 200 and time.monotonic() < killed + 5:
        time.sleep(0.05)
    assert service.get("/ready")[0] == 503
    service.wait_until_ready(timeout_s=killed + 25 - time.monotonic())
    assert ask(service) == expected
