"""A load of concurrent chat streams from one light process: raw sockets, counted bytes.

Prints one JSON object: events and their gaps as a client sees them. Spends as little as it can per
event, for it shares the cores with what it measures.

    python tests/bench/sse_load.py PORT KEY STREAMS TOKENS PACE
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from array import array
from typing import Any

EVENT = b"data: "
LAST_CHUNK = b"\n0\r\n\r\n"
READ_BYTES = 1 << 16
TIMEOUT_S = 20.0


class Stream:
    """One connection and what came over it."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(request)
        self.socket.setblocking(False)
        self.events = 0
        self.first_at = 0.0
        self.last_at = 0.0
        self.done = False
        self._tail = b""

    def read(self, gaps: array[float]) -> None:
        """Takes what is there; notes the time since there was something before."""
        data = self._tail + self.socket.recv(READ_BYTES)
        now = time.perf_counter()
        if not self._tail and not data.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"refused: {data[:400]!r}")
        count = data.count(EVENT)
        self.done = len(data) == len(self._tail) or data.endswith(LAST_CHUNK)
        self._tail = data[-len(EVENT) + 1 :]
        if count:
            if self.first_at:
                gaps.append(now - self.last_at)
            elif self.events + count > 1:  # the first event names the role and comes before a token
                self.first_at = now
            self.events += count
            self.last_at = now


def request_bytes(key: str, tokens: int, pace: int) -> bytes:
    """A chat with stop strings that nothing matches."""
    body = json.dumps(
        {
            "model": "deepseek-r1-32b",
            "messages": [{"role": "user", "content": "Count"}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "seed": pace,
            "stop": ["\n\nObservation:", "END OF TURN"],
            "stream": True,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def run(port: int, key: str, streams: int, tokens: int, pace: int) -> dict[str, Any]:
    """All streams at once, each read to its end."""
    request = request_bytes(key, tokens, pace)
    gaps = array("d")
    poller = select.epoll()
    started = time.perf_counter()
    opened = [Stream(port, request) for _ in range(streams)]
    by_number = {stream.socket.fileno(): stream for stream in opened}
    for number in by_number:
        poller.register(number, select.EPOLLIN)
    reads = 0
    while by_number:
        ready = poller.poll(TIMEOUT_S)
        if not ready:
            raise SystemExit("the streams fell silent")
        for number, _ in ready:
            stream = by_number[number]
            stream.read(gaps)
            reads += 1
            if stream.done:
                poller.unregister(number)
                del by_number[number]
    return summary(opened, gaps, reads, started)


def summary(
    streams: list[Stream], gaps: array[float], reads: int, started: float
) -> dict[str, Any]:
    """The figures; role, finish and [DONE] are events, but not of tokens."""
    ended = max(stream.last_at for stream in streams)
    text_events = sum(stream.events - 3 for stream in streams)
    firsts = sorted(stream.first_at - started for stream in streams)
    sizes = sorted(gap * 1000 for gap in gaps)
    together = text_events - len(sizes)  # an event that came with its predecessor had no gap
    every = [0.0] * together + sizes
    used = time.process_time()
    return {
        "text_events": text_events,
        "seconds": ended - started,
        "events_per_s": text_events / (ended - started),
        "events_per_read": text_events / reads,
        "first_ms_p50": firsts[len(firsts) // 2] * 1000,
        "first_ms_max": firsts[-1] * 1000,
        "gap_ms_p50": every[len(every) // 2],
        "gap_ms_p99": every[int(len(every) * 0.99)],
        "read_gap_ms_p50": sizes[len(sizes) // 2],
        "read_gap_ms_p99": sizes[int(len(sizes) * 0.99)],
        "gap_ms_max": sizes[-1],
        "load_cpu_s": used,
    }


if __name__ == "__main__":
    port, key, *numbers = sys.argv[1:]
    print(json.dumps(run(int(port), key, *map(int, numbers))))
