import json

from serve_app.openai import sse
from serve_app.openai.errors import replica_lost


def test_an_event_is_one_data_line_and_a_blank_line() -> None:
    assert sse.event(b'{"a":1}') == b'data: {"a":1}\n\n'


def test_an_error_event_carries_the_envelope() -> None:
    raw = sse.error_event(replica_lost())
    assert raw.startswith(b"data: ")
    assert raw.endswith(b"\n\n")
    assert json.loads(raw[6:])["error"]["code"] == "replica_lost"


def test_a_keep_alive_is_a_comment() -> None:
    assert sse.KEEP_ALIVE.startswith(b":")
    assert sse.KEEP_ALIVE.endswith(b"\n\n")


def test_proxies_are_told_not_to_buffer_or_store() -> None:
    assert sse.HEADERS["content-type"].startswith("text/event-stream")
    assert sse.HEADERS["cache-control"] == "no-cache"
    assert sse.HEADERS["x-accel-buffering"] == "no"


def test_no_reader_of_lines_finds_an_end_of_line_within_an_event() -> None:
    said = {"naïve \u2028 \u2029": "a\x85b\r\n\x0b\x0c\x1c 日本語 \U0001f642"}
    raw = sse.event(sse.line(said)).decode()
    assert len(raw.splitlines()) == 2
    assert json.loads(raw[6:]) == said
    assert "日本語" in raw
