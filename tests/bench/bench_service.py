"""Speed through the whole service: HTTP, admission, deltas and engine, as clients see it.

Prints what clients see; nothing is asserted about speed. Run with `make bench`.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest

from tests.e2e.service import Service, running_service

CLIENTS = (1, 8, 32, 64)
OUTPUT_TOKENS = 128


@pytest.mark.e2e
def test_what_clients_see_of_the_service() -> None:
    with running_service() as service:
        stream_once(service)
        print(
            f"\nservice, demo model, 2 ranks, {OUTPUT_TOKENS} tokens out, client on the same cores"
        )
        for clients in CLIENTS:
            started = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                firsts = list(pool.map(lambda _: stream_once(service), range(clients)))
            rate = clients * OUTPUT_TOKENS / (time.perf_counter() - started)
            first = statistics.median(firsts) * 1000
            print(
                f"  {clients:3d} streams: {rate:7.0f} tokens/s   first token {first:6.0f} ms (p50)"
            )
            assert len(firsts) == clients


def stream_once(service: Service) -> float:
    """Seconds to the first token of one stream, read to its end."""
    body = {
        "model": "deepseek-r1-32b",
        "messages": [{"role": "user", "content": "Count from 1 to 200"}],
        "max_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    headers = {"authorization": f"Bearer {service.key}"}
    url = f"{service.url}/v1/chat/completions"
    started, first = time.perf_counter(), 0.0
    with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as reply:
        for line in reply.iter_lines():
            if not first and '"content":"' in line and '"role"' not in line:
                first = time.perf_counter() - started
    assert line == "" or "[DONE]" in line
    return first
