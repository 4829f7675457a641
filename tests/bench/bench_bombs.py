"""How long running streams wait for their next token while hostile schemas are tried and compiled.

Starts the service with the demo model, lets streams run undisturbed, then beside a request every
50 ms: without a form, with a usual schema, with one of the tests' bombs. Whoever reads the streams
is a process of its own, so that the gaps are the service's and not those of a busy client. Prints
medians of rounds that take turns, and the statuses of the requests beside the streams. Run with:

    python -m tests.bench.bench_bombs [streams] [rounds]
"""

import itertools
import json
import statistics
import subprocess
import sys
import threading
from collections import Counter
from typing import Any

import httpx2 as httpx

from tests.bench import sse_load
from tests.cluster.text.grammar_bombs import BOMBS
from tests.e2e.conformance.structured_schemas import SCHEMAS
from tests.e2e.conformance.wire import CHAT, MODEL, bearer
from tests.e2e.service import Service, running_service

TOKENS = 1200
FIGURES = ("gap_ms_p50", "gap_ms_p99")
BESIDE: dict[str, list[dict[str, Any] | None]] = {
    "undisturbed": [],
    "beside plain": [None],
    "beside usual": [*SCHEMAS.values()],
    "beside bombs": [*BOMBS.values()],
}


def gaps_of(service: Service, count: int, seed: int) -> dict[str, float]:
    """Of `count` streams at once, in milliseconds."""
    arguments = (service.port, service.key, count, TOKENS, seed)
    command = [sys.executable, sse_load.__file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    found = json.loads(done.stdout)
    return {name: found[name] for name in FIGURES}


class Sender(threading.Thread):
    """A request every 50 ms; each schema is another one, so that no verdict is remembered."""

    numbers = itertools.count()

    def __init__(self, service: Service, schemas: list[dict[str, Any] | None]) -> None:
        super().__init__()
        self.statuses: Counter[int] = Counter()
        self._service, self._schemas = service, schemas
        self._done = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self._service.url, headers=bearer(self._service)) as client:
            while not self._done.wait(0.05):
                reply = client.post(CHAT, json=self._body(next(self.numbers)), timeout=60)
                self.statuses[reply.status_code] += 1

    def stop(self) -> None:
        self._done.set()
        self.join()

    def _body(self, number: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 4,
            "reasoning_effort": "none",  # the grammar is needed at once
        }
        schema = self._schemas[number % len(self._schemas)]
        if schema is None:
            return body
        named = {"name": "x", "schema": {**schema, "title": f"t{number}"}}
        return {**body, "response_format": {"type": "json_schema", "json_schema": named}}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    gaps: dict[str, list[dict[str, float]]] = {name: [] for name in BESIDE}
    statuses: dict[str, Counter[int]] = {name: Counter() for name in BESIDE}
    with running_service() as service:
        gaps_of(service, count, 0)
        for number, (name, schemas) in itertools.product(range(rounds), BESIDE.items()):
            sender = Sender(service, schemas)
            if schemas:
                sender.start()
            gaps[name].append(gaps_of(service, count, number))
            if schemas:
                sender.stop()
            statuses[name] += sender.statuses
    for name, found in gaps.items():
        told = (f"{f[4:]} {statistics.median(one[f] for one in found):.1f}" for f in FIGURES)
        print(f"{name:13} {', '.join(told)} ms", dict(sorted(statuses[name].items())))


if __name__ == "__main__":
    main()
