"""The wrapper under a real server, spoken to byte by byte, and under hand-made ASGI messages."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import pytest
import structlog
import uvicorn
from fastapi import FastAPI, Request
from ray.serve._private.http_util import RequestIdMiddleware
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from serve_app.http_errors import install_error_handlers
from serve_app.http_limits import BrokenResponseError, HttpLimits, serve_middlewares

MAX_BODY = 1000
MAX_HEADERS = 4000
CANARY = "canary-3f9a"


def application() -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    install_error_handlers(app)

    @app.post("/length")
    async def length(request: Request) -> dict[str, Any]:
        body = await request.body()
        return {"length": len(body), "id": request.state.request_id}

    @app.post("/refuses-unread")
    async def refuses_unread() -> Response:
        return Response(status_code=401)

    @app.get("/ticks")
    async def ticks() -> Response:
        async def events() -> AsyncIterator[bytes]:
            for number in range(3):
                yield b"data: %d\n\n" % number
                await asyncio.sleep(0.05)

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.post("/bug")
    async def bug(request: Request) -> Response:
        raise RuntimeError(f"{CANARY} {await request.body()!r}")

    @app.get("/breaks")
    async def breaks() -> Response:
        async def events() -> AsyncIterator[bytes]:
            yield b"data: 0\n\n"
            raise RuntimeError(CANARY)

        return StreamingResponse(events())

    return app


class Reply(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        (value,) = [value for key, value in self.headers if key == name]
        return value

    def code(self) -> str:
        """The error's code, of an envelope and nothing else."""
        assert self.header("content-type") == "application/json"
        body = json.loads(self.body)
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return str(body["error"]["code"])


@pytest.fixture(scope="module", params=["httptools", "h11"])
def address(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    limits = HttpLimits(
        application(), max_body_bytes=MAX_BODY, max_header_bytes=MAX_HEADERS, body_deadline_s=0.5
    )
    config = uvicorn.Config(limits, port=0, http=request.param, log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join(10)


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=10)


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: test", *lines, "", ""]).encode()


def read_reply(client: socket.socket) -> Reply:
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = client.recv(65536)
        assert piece, "closed before the headers"
        raw += piece
    start, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = start.decode().split("\r\n")
    headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
    size = int(dict(headers)["content-length"])
    while len(body) < size:
        body += client.recv(65536)
    return Reply(int(status.split()[1]), headers, body)


def ask(address: tuple[str, int], raw: bytes) -> Reply:
    with connect(address) as client:
        client.sendall(raw)
        return read_reply(client)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


JSON_TYPE = "content-type: application/json"


def test_a_body_of_just_the_limit_passes(address: tuple[str, int]) -> None:
    body = b"x" * MAX_BODY
    reply = ask(address, head("/length", JSON_TYPE, f"content-length: {MAX_BODY}") + body)
    assert reply.status == 200
    assert json.loads(reply.body)["length"] == MAX_BODY


def test_a_declared_length_over_the_limit_is_refused_before_the_body_comes(
    address: tuple[str, int],
) -> None:
    reply = ask(address, head("/length", JSON_TYPE, "content-length: 99999999"))
    assert (reply.status, reply.code()) == (413, "body_too_large")


def test_a_whole_large_body_is_read_off_so_that_the_refusal_arrives(
    address: tuple[str, int],
) -> None:
    size = 8 * 2**20
    reply = ask(address, head("/length", JSON_TYPE, f"content-length: {size}") + b"x" * size)
    assert (reply.status, reply.code()) == (413, "body_too_large")


def test_an_undeclared_body_is_counted_while_it_comes(address: tuple[str, int]) -> None:
    pieces = chunked(*[b"x" * 300] * 4) + b"0\r\n\r\n"
    reply = ask(address, head("/length", JSON_TYPE, "transfer-encoding: chunked") + pieces)
    assert (reply.status, reply.code()) == (413, "body_too_large")


def test_an_endless_body_is_refused_without_its_end(address: tuple[str, int]) -> None:
    pieces = chunked(b"x" * 1500)
    reply = ask(address, head("/length", JSON_TYPE, "transfer-encoding: chunked") + pieces)
    assert (reply.status, reply.code()) == (413, "body_too_large")


def test_a_body_that_stops_coming_is_given_up(address: tuple[str, int]) -> None:
    reply = ask(address, head("/length", JSON_TYPE, "content-length: 10") + b"half")
    assert (reply.status, reply.code()) == (408, "request_timeout")
    assert reply.header("connection") == "close"


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP", "identity, gzip"])
def test_compressed_bodies_are_refused(address: tuple[str, int], encoding: str) -> None:
    lines = (JSON_TYPE, f"content-encoding: {encoding}", "content-length: 2")
    reply = ask(address, head("/length", *lines) + b"{}")
    assert (reply.status, reply.code()) == (415, "unsupported_content_encoding")


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"]
)
def test_bodies_of_other_types_are_refused(address: tuple[str, int], media_type: str) -> None:
    lines = (f"content-type: {media_type}", "content-length: 2")
    reply = ask(address, head("/length", *lines) + b"{}")
    assert (reply.status, reply.code()) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("content-type: application/json; charset=utf-8",),
        ("Content-Type: Application/JSON", "content-encoding: identity"),
    ],
)
def test_json_is_accepted_however_it_is_declared(
    address: tuple[str, int], lines: tuple[str, ...]
) -> None:
    assert ask(address, head("/length", *lines, "content-length: 2") + b"{}").status == 200


def test_large_headers_are_refused(address: tuple[str, int]) -> None:
    reply = ask(address, head("/ticks", f"x-filler: {'x' * MAX_HEADERS}", method="GET"))
    assert (reply.status, reply.code()) == (431, "headers_too_large")


def test_a_large_url_is_refused(address: tuple[str, int]) -> None:
    reply = ask(address, head(f"/ticks?{'x' * MAX_HEADERS}", method="GET"))
    assert (reply.status, reply.code()) == (431, "headers_too_large")


def test_an_offered_request_id_is_kept_and_told_to_the_route(address: tuple[str, int]) -> None:
    lines = ("x-request-id: my-id.7", "content-length: 2")
    reply = ask(address, head("/length", *lines) + b"{}")
    assert reply.header("x-request-id") == "my-id.7"
    assert json.loads(reply.body)["id"] == "my-id.7"


@pytest.mark.parametrize("offered", ["", "x" * 129, "a b", "a<script>", "-a"])
def test_an_odd_request_id_is_replaced(address: tuple[str, int], offered: str) -> None:
    reply = ask(address, head("/length", f"x-request-id: {offered}", "content-length: 2") + b"{}")
    assert re.fullmatch(r"req_[0-9a-f]{32}", reply.header("x-request-id"))


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/nowhere", "GET", 404), ("/length", "PUT", 405), ("/bug", "POST", 500)],
)
def test_every_error_has_an_envelope_and_an_id(
    address: tuple[str, int], path: str, method: str, status: int
) -> None:
    reply = ask(address, head(path, "content-length: 2", method=method) + b"{}")
    assert reply.status == status
    assert reply.code()
    assert reply.header("x-request-id")
    assert CANARY.encode() not in reply.body


def test_the_connection_stays_usable_after_a_refusal(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.sendall(head("/length", "content-type: text/plain", "content-length: 2") + b"{}")
        assert read_reply(client).status == 415
        client.sendall(head("/length", "content-length: 2") + b"{}")
        assert read_reply(client).status == 200


def test_a_route_may_answer_without_reading_the_body(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.sendall(head("/refuses-unread", "content-length: 900") + b"x" * 900)
        assert read_reply(client).status == 401
        client.sendall(head("/length", "content-length: 2") + b"{}")
        assert read_reply(client).status == 200


def test_who_asks_before_sending_too_much_is_not_told_to_go_on(address: tuple[str, int]) -> None:
    lines = (JSON_TYPE, "expect: 100-continue", "content-length: 5000")
    assert ask(address, head("/length", *lines)).status == 413


def test_a_stream_arrives_piece_by_piece(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.sendall(head("/ticks", method="GET"))
        raw = client.recv(65536)
        while b"data: 0" not in raw:
            raw += client.recv(65536)
        assert b"data: 2" not in raw
        assert raw.count(b"x-request-id: ") == 1


def test_a_stream_that_breaks_ends_without_its_last_chunk(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.sendall(head("/breaks", method="GET"))
        raw = b""
        while piece := client.recv(65536):
            raw += piece
    assert b"data: 0" in raw
    assert not raw.endswith(b"0\r\n\r\n")
    assert CANARY.encode() not in raw


def http_scope(**changes: Any) -> Scope:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [],
    }
    return {**scope, **changes}


def run(app: Any, incoming: list[Message], scope: Scope | None = None) -> list[Message]:
    """What the wrapped `app` sends to a server that delivers `incoming`."""
    return exchange(HttpLimits(app, max_body_bytes=MAX_BODY), incoming, scope or http_scope())


def exchange(app: Any, incoming: list[Message], scope: Scope) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    await Request(scope, receive).body()
    raise AssertionError("the body is never whole")


def test_a_client_that_leaves_while_it_sends_ends_quietly() -> None:
    incoming: list[Message] = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
    ]
    with structlog.testing.capture_logs() as logs:
        assert run(reads_all, incoming) == []
    assert logs == []


def test_an_application_that_answers_in_spite_of_a_refused_body_is_overruled() -> None:
    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            while True:
                await receive()
        except Exception:
            await Response("fine")(scope, receive, send)

    big: Message = {"type": "http.request", "body": b"x" * 1001, "more_body": False}
    sent = run(stubborn, [big])
    assert [message.get("status") for message in sent if "status" in message] == [413]


def test_a_bug_is_logged_once_with_its_place_and_without_its_words() -> None:
    async def bug(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError(CANARY)

    with structlog.testing.capture_logs() as logs:
        sent = run(bug, [{"type": "http.request"}])
    assert sent[0]["status"] == 500
    (entry,) = logs
    assert entry["kind"] == "KeyError"
    assert "in bug" in entry["frames"][-1]
    assert CANARY not in str(logs)
    error = json.loads(sent[1]["body"])["error"]
    assert entry["request_id"] in error["message"]


def test_a_bug_in_mid_stream_is_passed_on_without_its_words() -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError(CANARY)

    with structlog.testing.capture_logs() as logs, pytest.raises(BrokenResponseError) as caught:
        run(breaks, [])
    assert len(logs) == 1
    assert CANARY not in f"{caught.value}"
    assert caught.value.__suppress_context__


def test_a_length_of_a_million_digits_costs_nothing() -> None:
    headers = [(b"content-length", b"9" * 60_000)]
    sent = run(reads_all, [{"type": "http.request"}], http_scope(headers=headers))
    assert sent[0]["status"] == 413


@pytest.mark.parametrize("offered", [b"abc", b"x" * 300, b"a<script>", None])
def test_under_ray_serve_one_sane_id_is_echoed_and_told_to_the_route(offered: bytes | None) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["request_id"])
        await Response()(scope, receive, send)

    served: Any = RequestIdMiddleware(HttpLimits(app, server_echoes_request_id=True))
    for middleware in serve_middlewares():
        served = middleware.cls(served, *middleware.args, **middleware.kwargs)
    headers = [] if offered is None else [(b"x-request-id", offered)] * 2
    sent = exchange(served, [{"type": "http.request"}], http_scope(headers=headers))
    (echoed,) = [value for name, value in sent[0]["headers"] if name == b"x-request-id"]
    assert seen == [echoed.decode()]
    assert re.fullmatch(r"abc|req_[0-9a-f]{32}", seen[0])


def test_other_protocols_pass_untouched() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    run(app, [], {"type": "lifespan"})
    assert seen == [{"type": "lifespan"}]
