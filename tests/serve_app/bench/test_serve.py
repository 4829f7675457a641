"""The load on a server, against a small server of the OpenAI chat API that is not ours."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serve_app.bench.http_stream import HttpError, Reply, Target
from serve_app.bench.load import Arrivals, replies
from serve_app.bench.plot import check, write
from serve_app.bench.report import Objective, series, summary
from serve_app.bench.serve import Ask, run


class Server:
    """Answers max_tokens words, two tokens counted a word of the prompt, and keeps what came."""

    def __init__(self, *, strict: bool = False, newline: bytes = b"\n") -> None:
        self.bodies: list[dict[str, Any]] = []
        self._strict = strict
        self._newline = newline

    @asynccontextmanager
    async def url(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if head.startswith(b"get"):
            _plain(writer, 200, {"data": [{"id": "some-model"}]})
        else:
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            self.bodies.append(body)
            if self._strict and "ignore_eos" in body:
                _plain(writer, 400, {"error": {"message": "unknown field ignore_eos"}})
            else:
                self._stream(writer, body)
        await writer.drain()
        writer.close()

    def _stream(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        tokens = body["max_tokens"]
        words = len(body["messages"][0]["content"].split())
        usage = {"prompt_tokens": 3 + 2 * words, "completion_tokens": tokens}
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": f"w{i}"} for i in range(tokens)]
        events = [{"choices": [{"delta": delta}]} for delta in deltas]
        lines = [json.dumps(event) for event in [*events, {"choices": [], "usage": usage}]]
        text = b"".join(
            b"data: " + line.encode() + 2 * self._newline for line in [*lines, "[DONE]"]
        )
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(text), 37):  # events cut anywhere
            piece = text[start : start + 37]
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        writer.write(b"0\r\n\r\n")


def _plain(writer: asyncio.StreamWriter, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))


def loaded(server: Server, ask: Ask, arrivals: Arrivals) -> list[Reply]:
    async def main() -> list[Reply]:
        async with server.url() as url:
            return await run(Target(url, "key"), ask, arrivals)

    return asyncio.run(main())


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_every_token_is_seen_however_the_stream_is_cut(newline: bytes) -> None:
    server = Server(newline=newline)
    found = loaded(server, Ask(prompt_len=33, output_len=9), Arrivals(5, concurrency=2))
    assert [reply.error for reply in found] == [""] * 5
    assert [len(reply.times) for reply in found] == [9] * 5
    assert [reply.prompt_tokens for reply in found] == [33] * 5
    assert summary(found, Objective())["output_tokens"] == 45


def test_prompts_are_distinct_and_greedy_past_the_end() -> None:
    server = Server()
    loaded(server, Ask(prompt_len=60, output_len=2), Arrivals(4, rate="burst"))
    last = server.bodies[-4:]
    assert len({body["messages"][0]["content"] for body in last}) == 4
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in last)
    assert {body["model"] for body in last} == {"some-model"}


def test_a_server_that_refuses_ignore_eos_is_asked_without_it() -> None:
    server = Server(strict=True)
    found = loaded(server, Ask(output_len=3), Arrivals(2))
    assert [reply.error for reply in found] == ["", ""]
    assert "ignore_eos" not in server.bodies[-1]


def test_requests_at_a_rate_all_come() -> None:
    found = loaded(Server(), Ask(output_len=2), Arrivals(6, concurrency=3, rate=500.0))
    assert len(found) == 6


def test_no_more_are_in_flight_than_allowed() -> None:
    flying = most = 0

    async def send() -> Reply:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0)
        flying -= 1
        return Reply()

    assert len(asyncio.run(replies(Arrivals(9, concurrency=4), send))) == 9
    assert most == 4


def test_a_server_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises((OSError, HttpError)):
        asyncio.run(run(Target("http://127.0.0.1:1"), Ask(), Arrivals(1)))


def test_the_page_holds_both_curves_and_asks_for_nothing_else(tmp_path: Path) -> None:
    found = loaded(Server(), Ask(output_len=4), Arrivals(3))
    path = tmp_path / "plot.html"
    write(path, series(found), summary(found, Objective()))
    page = path.read_text()
    assert page.count("<polyline") == 2
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_plot_of_an_unknown_kind_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(ValueError, match=r"\.html or \.png"):
        check(Path("plot.bmp"))
