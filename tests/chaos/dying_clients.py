"""Clients as processes that are killed in the middle of their streams.

    python -m tests.chaos.dying_clients SECRET COUNT PORT...

Each asks for a stream of 1 to 19 tokens and a last one that never comes, and reads what there is.
When all have read theirs, or been refused, all are killed with SIGKILL. Prints
{"statuses": {status: clients}, "tokens": all that were read}. Knows nothing but sockets.
"""

import json
import os
import re
import signal
import socket
import struct
import sys
from collections import Counter

TOKENS = re.compile(rb'"reasoning_content":"(x+)"')
REPORT = struct.Struct("=HH")
"""Status and tokens; shorter than what a pipe takes in one piece."""


def request(secret: str, tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": "deepseek-r1-32b",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": tokens + 1,
            "stream": True,
            "reasoning_format": "split",
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {secret}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def live(port: int, secret: str, tokens: int, report: int) -> None:
    """Reads all tokens that come, says so, and waits for its end."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request(secret, tokens))
        heard, read = b"", 0
        while read < tokens:
            heard += connection.recv(65536)
            status = int(heard[9:12] or 0)
            if status not in (0, 200):
                break
            read = sum(map(len, TOKENS.findall(heard)))
        os.write(report, REPORT.pack(status, read))
        signal.pause()


def main(secret: str, count: int, ports: list[int]) -> None:
    reader, writer = os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            try:
                live(ports[number % len(ports)], secret, 1 + number % 19, writer)
            finally:
                os._exit(1)
        children.append(child)
    statuses: Counter[int] = Counter()
    tokens = 0
    for _ in range(count):
        status, read = REPORT.unpack(os.read(reader, REPORT.size))
        statuses[status] += 1
        tokens += read
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
    sys.stdout.write(json.dumps({"statuses": statuses, "tokens": tokens}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [int(port) for port in sys.argv[3:]])
