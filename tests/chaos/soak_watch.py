"""What a soak looks at from outside: memory and file descriptors, Redis, the ledger.

Owns the measuring and what counts as a leak. Breaks nothing.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import redis

from serve_app.tenancy.redis_server import running_url
from tests.chaos.soak_clients import Answer
from tests.serve_app.tenancy.records import unpack

MB = 2**20
MOST_NEW_FDS = 32


class Watch:
    """The processes of one service, looked at again and again."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self._seen: dict[tuple[str, int], list[tuple[float, float, int]]] = defaultdict(list)
        """By role and id: seconds, megabytes, file descriptors."""

    def processes(self) -> Iterator[tuple[str, psutil.Process]]:
        """Each with its role."""
        for process in self._root.children(recursive=True):
            try:
                name = (process.cmdline() or [""])[0]
            except psutil.Error:
                continue
            yield name.split()[0].rsplit("/", 1)[-1] if name else "", process

    def of(self, word: str) -> list[psutil.Process]:
        """Those whose role has that word."""
        return [process for role, process in self.processes() if word in role]

    def look(self, at: float) -> None:
        """Takes one sample of all, at a time in seconds."""
        for role, process in self.processes():
            try:
                sample = (at, process.memory_info().rss / MB, process.num_fds())
            except psutil.Error:
                continue
            self._seen[role, process.pid].append(sample)

    def told(self) -> tuple[list[str], list[str]]:
        """Lines of a table, and what has grown beyond its bound. Processes that lived through less
        than half of it tell nothing; the first third warms up."""
        lines, leaks = [], []
        longest = max(len(samples) for samples in self._seen.values())
        for (role, pid), samples in sorted(self._seen.items()):
            if len(samples) < max(6, longest // 2):
                continue
            warm = samples[len(samples) // 3 :]
            at, memory, fds = (np.array(column, float) for column in zip(*warm, strict=True))
            slope = np.polyfit(at / 60, memory, 1)[0]
            lines.append(
                f"{role:32} {pid:7} {memory[0]:7.0f} MB {memory[-1]:7.0f} MB "
                f"{slope:+7.2f} MB/min  fds {fds[0]:.0f} -> {fds[-1]:.0f}, at most {fds.max():.0f}"
            )
            if fds[-1] > fds[0] + MOST_NEW_FDS:
                leaks.append(f"{role}: {fds[-1] - fds[0]:.0f} more file descriptors")
        return lines, leaks


def held(state_dir: Path) -> list[str]:
    """What Redis holds of requests; nothing once all have ended."""
    url = running_url(state_dir / "redis")
    if url is None:
        return ["Redis does not answer"]
    found = []
    with redis.Redis(unix_socket_path=url.removeprefix("unix://")) as client:
        for key in client.scan_iter("dr:*", count=1000):
            name = key.decode().partition("}:")[2]
            kind, _, rest = name.partition(":")
            if kind in ("req", "in", "out", "q") or (kind in ("dl", "mx") and not rest):
                found.append(name)
            elif kind in ("pool", "mt"):
                found += _counts(name, _record(client, kind, key))
            elif kind == "led" and client.xlen(key):
                found.append("ledger entries that are not stored")
    journals = (state_dir / "journal").glob("*.jsonl")
    return found + [f"journal {path.name}" for path in journals if path.stat().st_size]


def ledger_of(state_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Its rows by the id that the client was told: one served alone, or come back, has others."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with sqlite3.connect(f"file:{state_dir}/ledger.db?mode=ro", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        for row in connection.execute("SELECT * FROM ledger"):
            asked = row["rid"].split("-back")[0].removesuffix("-alone")
            rows[asked].append(dict(row))
    return rows


def mistakes(answers: dict[str, Answer], rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Where ledger and clients differ."""
    found = []
    for rid, answer in answers.items():
        mine = rows.get(rid, [])
        charged = sum(row["output_tokens"] for row in mine)
        is_lost = any(row["how"] == "lost" for row in mine)  # charged as last told, once a second
        if not mine:
            found.append(f"{rid}: {answer.output} tokens given, not in the ledger")
        elif answer.whole and charged != answer.output and not is_lost:
            found.append(f"{rid}: {answer.output} tokens given, {charged} charged")
        elif not is_lost and not answer.output <= charged <= answer.most:
            found.append(f"{rid}: left after {answer.output} tokens, {charged} charged")
    return found


def _record(client: "redis.Redis", kind: str, key: bytes) -> dict[str, Any]:
    packed: Any = client.get(key)
    return unpack(kind, packed) if packed else {}


def _counts(name: str, record: dict[str, Any]) -> list[str]:
    counts = ("running", "waiting", "committed", "wneed") if name == "pool" else ("n",)
    return [f"{name}: {count} is {record[count]}" for count in counts if record.get(count)]
