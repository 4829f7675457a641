"""What black-box tests say to the service and read from it, below any SDK.

`post` and `stream` speak HTTP; `error_of` holds a refusal to the exact envelope; `asked` is a chat
request that the demo model answers within its default budget of tokens.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.service import Service

MODEL = "deepseek-r1-32b"
CHAT = "/v1/chat/completions"
KEEP_ALIVE_S = 0.5
STALL_TIMEOUT_S = 2.0
INGRESSES = 2
ORIGIN = "https://app.example"
"""The one origin whose web pages may call the service."""
TIMEOUT_S = 60.0
COUNT_TO_150: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Count from 1 to 150"}],
    "max_tokens": 1000,
    "ignore_eos": True,
}
"""Fields of a request that runs for as long as its max_tokens allow."""


def asked(content: str = "How many a's are in the word 'banana'?", **fields: Any) -> dict[str, Any]:
    """A greedy chat request; `fields` are added or win."""
    question = [{"role": "user", "content": content}]
    return {
        "model": MODEL,
        "messages": question,
        "temperature": 0,
        "max_tokens": 200,
        **fields,
    }


def bearer(service: Service, key: str | None = None) -> dict[str, str]:
    return {"authorization": f"Bearer {key or service.key}"}


def post(
    service: Service,
    body: dict[str, Any] | bytes,
    *,
    path: str = CHAT,
    key: str | None = None,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    """One request; `body` as JSON, or as it is. `headers` win over key and content type."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json", **bearer(service, key), **(headers or {})}
    return httpx.post(service.url + path, content=content, headers=sent, timeout=TIMEOUT_S)


def get(
    service: Service, path: str, *, key: str | None = None, method: str = "GET"
) -> httpx.Response:
    headers = bearer(service, key)
    return httpx.request(method, service.url + path, headers=headers, timeout=TIMEOUT_S)


def error_of(reply: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The error of an exact envelope."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    if code is not None:
        assert error["code"] == code
    return error


@contextlib.contextmanager
def streaming(
    service: Service,
    body: dict[str, Any],
    *,
    path: str = CHAT,
    key: str | None = None,
    headers: dict[str, str] | None = None,
) -> Iterator[httpx.Response]:
    """An open stream; leaving the block hangs up."""
    sent = {**bearer(service, key), **(headers or {})}
    body = {**body, "stream": True}
    url = service.url + path
    with httpx.stream("POST", url, json=body, headers=sent, timeout=TIMEOUT_S) as reply:
        yield reply


def stream(service: Service, body: dict[str, Any], **options: Any) -> list[str]:
    """The non-empty lines of a whole stream, comments and [DONE] included."""
    with streaming(service, body, **options) as reply:
        lines = list(reply.iter_lines())
        assert reply.status_code == 200, lines
    return [line for line in lines if line]


def events_of(lines: list[str]) -> list[dict[str, Any]]:
    """The JSON objects of a stream's data lines."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [json.loads(text) for text in data if text != "[DONE]"]


def chunks(service: Service, body: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """The chunks of a stream that must end well."""
    lines = stream(service, body, **options)
    assert lines[-1] == "data: [DONE]"
    return events_of(lines)


def text_of(found: list[dict[str, Any]], field: str = "content", index: int = 0) -> str:
    """One choice's deltas, joined."""
    choices = (choice for chunk in found for choice in chunk["choices"])
    return "".join(
        choice["delta"].get(field) or "" for choice in choices if choice["index"] == index
    )


def eventually(holds: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Whether a condition comes true; the wait ends with it."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_idle(service: Service) -> bool:
    """No request runs or waits, and no KV block is held."""
    names = ("num_requests_running", "num_requests_waiting", "kv_blocks_used", "queue_length")
    return all(service.metric(f"deeprequest_{name}") == 0 for name in names)


def settled(service: Service, name: str) -> float:
    """A replica's counter once its reports, one a second, tell nothing new."""
    before, now = -1.0, service.metric(name)
    while before != now:
        time.sleep(1.5)
        before, now = now, service.metric(name)
    return now


def counted(service: Service, name: str, **labels: str) -> float:
    """The sum of a counter over all ingresses; the proxy chooses which one a look asks."""
    seen: dict[str, float] = {}
    deadline = time.monotonic() + TIMEOUT_S
    while len(seen) < INGRESSES:
        assert time.monotonic() < deadline, "an ingress never answers"
        families = text_string_to_metric_families(service.get("/metrics")[1])
        samples = [sample for family in families for sample in family.samples]
        (ingress,) = {sample.labels["ingress"] for sample in samples if "ingress" in sample.labels}
        seen[ingress] = sum(
            sample.value
            for sample in samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
    return sum(seen.values())


def opened(
    service: Service, body: dict[str, Any], *, key: str | None = None, buffer: int = 0
) -> socket.socket:
    """A connection that has sent a request and read nothing; `buffer` bounds what it takes in."""
    payload = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key or service.key}\r\ncontent-length: {len(payload)}\r\n\r\n"
    ).encode()
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(TIMEOUT_S)
    connection.connect(("127.0.0.1", service.port))
    connection.sendall(head + payload)
    return connection
