"""Checklist J: the connection below the API: other origins, compressed bodies, keep-alive."""

import gzip
import http.client
import json
import socket

import httpx2 as httpx
import pytest

from tests.e2e.conformance.wire import CHAT, ORIGIN, TIMEOUT_S, asked, bearer, error_of, post
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e
SEQUENTIAL, PIPELINED = 1000, 20


def preflight(service: Service, origin: str) -> httpx.Response:
    asked_for = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    return httpx.options(service.url + CHAT, headers=asked_for)


def test_j104_only_pages_of_configured_origins_may_call(service: Service) -> None:
    allowed = preflight(service, ORIGIN)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    refused = preflight(service, "https://evil.example")
    error_of(refused, 403, "origin_not_allowed")
    assert "access-control-allow-origin" not in refused.headers
    for body, status in ((asked(max_tokens=1), 200), (b"{", 400)):
        reply = post(service, body, headers={"origin": ORIGIN})
        assert reply.status_code == status
        assert reply.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-id" in reply.headers["access-control-expose-headers"]


@pytest.mark.parametrize("body", [gzip.compress(json.dumps(asked()).encode()), b"no gzip"])
def test_j105_a_compressed_body_is_refused_by_name(service: Service, body: bytes) -> None:
    reply = post(service, body, headers={"content-encoding": "gzip"})
    error_of(reply, 415, "unsupported_content_encoding")


def test_j106_a_thousand_requests_go_over_one_connection(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=TIMEOUT_S)
    connection.connect()
    opened = connection.sock
    headers = {"content-type": "application/json", **bearer(service)}
    for number in range(SEQUENTIAL):
        body = json.dumps({"prompt": "a " * (number % 7)})
        connection.request("POST", "/tokenize", body, headers)
        reply = connection.getresponse()
        assert (reply.status, json.loads(reply.read())["max_model_len"]) == (200, 4096)
        assert connection.sock is opened
    connection.close()


def test_j106_requests_sent_without_waiting_are_answered_in_order(service: Service) -> None:
    head = (
        f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\n"
        "x-request-id: number-{}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port), timeout=TIMEOUT_S) as connection:
        connection.sendall("".join(head.format(n) for n in range(PIPELINED)).encode())
        # One reader for all answers: what a reader of its own has read ahead is lost to the next.
        answers = connection.makefile("rb")
        for number in range(PIPELINED):
            status = answers.readline().split()[1]
            headers = http.client.parse_headers(answers)
            assert (status, headers["x-request-id"]) == (b"200", f"number-{number}")
            assert json.loads(answers.read(int(headers["content-length"])))["object"] == "list"
