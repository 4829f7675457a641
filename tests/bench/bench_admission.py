"""What a call of admission costs Redis, and how that grows with the queue.

A real redis-server, pinned to a core of its own where there are two; calls are sent in pipelines,
so no time of the network is in them. A key and its tenant are limited in requests, tokens, output
and concurrency, the model has a price, lengths have been learned. Printed: the server's own time
for a call (`INFO commandstats`), median of rounds; its whole CPU time beside it, which has reading,
answering and the append-only file in it; the same with 10,000 waiting and for 5,000 tenants.

    python -m tests.bench.bench_admission
"""

import contextlib
import itertools
import json
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import redis

from serve_app.sections import ClassesSection
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.store import STABLE_KEYS, scripts
from tests.serve_app.tenancy.tape import load_scripts

ROUNDS, CALLS = 7, 400
WAITING, TENANTS, KEYS_EACH = 10_000, 5_000, 4
PREFIX = "dr:{bench}:"
PRICE = "USD 550000 140000 2190000"
INGRESS = "0123456789abcdef"
ROOM = 2**40
PLENTY = 10**9


class Pool:
    """The scripts of one pool, called from a pipeline."""

    def __init__(self, client: redis.Redis, pid: int) -> None:
        self._client, self._pid = client, pid
        self._keys = [PREFIX + key for key in STABLE_KEYS]
        self._numbers = itertools.count()
        self.per_call: dict[str, list[float]] = defaultdict(list)
        """By what was called, the server's own microseconds."""
        self.cpu: dict[str, list[float]] = defaultdict(list)

    def fill(self, tenants: int, keys_each: int, *, slots: int) -> None:
        """An empty pool with keys, one replica and one ingress."""
        self._client.flushall()
        rules = [[5, 100, 5_000_000, 30_000_000]] * 3 + [[0, 80, 120_000_000, 30_000_000]]
        assert len(rules) == len(ClassesSection.model_fields)
        self._client.set(PREFIX + "rules", msgspec.msgpack.encode(rules))
        names = [f"tenant-{number}" for number in range(tenants)]
        records = [["ten", name, _config(weight=1 + i % 3)] for i, name in enumerate(names)]
        for tenant, key in itertools.product(range(tenants), range(keys_each)):
            fields = _config(id=f"key{tenant}-{key}", ten=names[tenant], status="active")
            records.append(["key", digest(tenant, key), fields])
        chunks = [records[i : i + 128] for i in range(0, len(records), 128)]
        self.send("conf", [("epoch", 1, json.dumps(chunk)) for chunk in chunks])
        self.offer(slots)
        self.send("beat", [(INGRESS, PLENTY * 1000)])

    def offer(self, slots: int) -> None:
        """What the replica has."""
        truth = (ROOM, ROOM, 0, 0, 0, slots, 16, 0, "inc", "{}")
        self.send("cap", [("replica-1", PLENTY * 1000, "ready", *truth)])

    def teach(self) -> None:
        """Lengths and times, by requests of each tenant that have ended."""
        for _ in range(9):
            self.settle("", self.admit("", [digest(tenant) for tenant in range(8)]))

    def admit(
        self, named: str, digests: list[str], *, times: int = 1, service_class: str = ""
    ) -> list[str]:
        """New requests; their ids."""
        rids = [f"chatcmpl-{next(self._numbers):024x}" for _ in range(times * len(digests))]
        times_us = (PLENTY * 100, 0, 3_600_000_000)
        tail = (*times_us, 100_000, service_class, "deepseek-r1-distill-qwen-32b", PRICE, "", -1)
        wishes = zip(itertools.cycle(digests), rids, strict=False)
        calls = [(digest, rid, INGRESS, 812, 4096, *tail, rid[-16:], 0) for digest, rid in wishes]
        self.send("admit", calls, named)
        return rids

    def wait_in_line(self, count: int, service_class: str = "") -> None:
        for start in range(0, count, 1000):
            self.admit("", EIGHT, times=min(1000, count - start) // 8, service_class=service_class)

    def settle(self, named: str, rids: list[str]) -> None:
        self.send("settle", [(rid, "ok", 812, 400, 1903, 1500) for rid in rids], named)

    def granted(self) -> list[str]:
        """The ids that the ingress has been told of since it last asked."""
        news: list[Any] = self._client.lrange(f"{PREFIX}gr:{INGRESS}", 0, -1)
        self._client.delete(f"{PREFIX}gr:{INGRESS}")
        return [line.split(" ")[1] for line in news if line.startswith("g")]

    def send(self, name: str, calls: list[tuple[Any, ...]], named: str = "") -> list[Any]:
        """One pipeline, measured where it has a name."""
        pipe = self._client.pipeline(transaction=False)
        execute: Callable[..., Any] = pipe.execute_command
        for args in calls:
            tail = (len(self._keys), *self._keys, "", *args)
            execute("EVALSHA", scripts()[name].sha, *tail)
        self._client.config_resetstat()
        before = self._cpu_s()
        replies: list[Any] = pipe.execute()
        if named:
            self.cpu[named].append((self._cpu_s() - before) * 1e6 / len(calls))
            told = self._client.info("commandstats")["cmdstat_evalsha"]
            self.per_call[named].append(float(told["usec"]) / told["calls"])
        return replies

    def memory(self) -> int:
        told = self._client.info("memory")
        return int(told["used_memory"] - told["mem_clients_normal"] - told["mem_aof_buffer"])

    def _cpu_s(self) -> float:
        return int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[0]) / 1e9


def digest(tenant: int, key: int = 0) -> str:
    return f"{tenant:032x}{key:032x}"


def _config(**fields: Any) -> dict[str, Any]:
    limits = {"rpm": 10**6, "tpm": 10**8, "itpm": 0, "otpm": 10**8, "conc": 50_000}
    budgets = {"daytok": 0, "montok": 2**50, "daymoney": 0, "monmoney": 0, "burst": 60}
    about = {"print": "0123456789abcdef", "op": "add", "by": "bench", "at": 1, "version": 1}
    key = {"scopes": "inference", "models": "", "shown": "", "reserve": 0, "class": "interactive"}
    return limits | budgets | about | key | fields


EIGHT = [digest(tenant) for tenant in range(8)]


def measure_alone(pool: Pool, tag: str, waiting: int) -> None:
    """What nobody waits for, with so many waiting in a lower class; names end in `tag`."""
    pool.fill(9, 1, slots=PLENTY)
    limited = _config(id="limited", ten="tenant-8", status="active", rpm=1, print="x")
    pool.send("conf", [("epoch", 1, json.dumps([["key", digest(8), limited]]))])
    pool.teach()
    pool.admit("", [digest(8)])
    pool.admit("", EIGHT, times=4 * CALLS // 8)
    pool.offer(5 * CALLS)  # of which batch may have four fifths
    pool.wait_in_line(waiting, "batch")
    for _ in range(ROUNDS):
        admitted = pool.admit(f"admit, runs at once{tag}", EIGHT, times=CALLS // 8)
        pool.settle(f"settle{tag}", admitted)
        pool.admit(f"refuse on rate{tag}", [digest(8)], times=CALLS)
        pool.send("beat", [(INGRESS, PLENTY * 1000)] * CALLS, f"beat{tag}")
        pool.send("tick", [(0,)] * CALLS, f"tick{tag}")


def measure_in_line(pool: Pool, tag: str, waiting: int) -> None:
    """A full pool in which so many and up to 400 more wait."""
    pool.fill(9, 1, slots=PLENTY)
    pool.teach()
    running = pool.admit("", EIGHT, times=8)
    pool.offer(len(running))
    pool.wait_in_line(waiting)
    for _ in range(ROUNDS):
        queued = pool.admit(f"admit, queued{tag}", EIGHT, times=CALLS // 8)
        pool.send("beat", [(INGRESS, PLENTY * 1000, *queued[:64])] * 50, f"beat, 64 waiters{tag}")
        for _ in range(CALLS // len(running)):
            pool.settle(f"settle and grant{tag}", running)
            running = pool.granted()


def memory_of_waiters(pool: Pool) -> float:
    """Bytes that each of 10,000 takes, in a server that has done nothing else."""
    pool.fill(9, 1, slots=0)
    pool.teach()
    before = pool.memory()
    pool.wait_in_line(WAITING)
    return (pool.memory() - before) / WAITING


def measure_many_tenants(pool: Pool) -> None:
    """5,000 tenants with 4 keys, each key with a waiter."""
    pool.fill(TENANTS, KEYS_EACH, slots=PLENTY)
    pool.teach()
    running = pool.admit("", EIGHT, times=8)
    pool.offer(len(running))
    keys = [digest(t, k) for k in range(KEYS_EACH) for t in range(TENANTS)]
    for start in range(0, len(keys), 1000):
        pool.admit("", keys[start : start + 1000])
    for _ in range(3 * ROUNDS):
        pool.settle("settle and grant, 5,000 tenants", running)
        running = pool.granted()


def print_table(pool: Pool) -> None:
    print(f"\n{'Redis, microseconds a call':34}{'script':>8}{'process':>9}{'10,000 wait':>14}")
    for name, times in pool.per_call.items():
        if name.endswith("+"):
            continue
        own, whole = statistics.median(times), statistics.mean(pool.cpu[name])
        full = pool.per_call.get(name + "+")
        grown = (
            f"{statistics.median(full):7.1f} {statistics.median(full) / own - 1:+5.0%}"
            if full
            else ""
        )
        print(f"{name:34}{own:8.1f}{whole:9.1f}{grown:>14}")


def print_levels(pool: Pool, bytes_each: float) -> None:
    """What the design asks of a full queue (L4) and of many tenants (L5)."""
    us = {name: statistics.median(times) for name, times in pool.per_call.items()}
    grown = us["admit, queued+"] / us["admit, queued"] - 1
    many = us["settle and grant, 5,000 tenants"] - us["settle"]
    print(
        f"L4  {WAITING:,} wait: {bytes_each * WAITING / 2**20:.1f} MB of Redis (aim: 32), ADMIT "
        f"takes {grown:+.0%} (aim: +30%)\n"
        f"L5  {TENANTS:,} tenants with {KEYS_EACH} keys: a grant takes {many:.0f} us (aim: 20)"
    )


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[RedisServer, Pool]]:
    """A redis-server with the scripts in it, on the last core; this process takes the others."""
    cores = sorted(os.sched_getaffinity(0))
    with RedisServer(folder) as running:
        assert running.pid is not None
        if len(cores) > 1:
            os.sched_setaffinity(running.pid, cores[-1:])
            os.sched_setaffinity(0, cores[:-1])
        path = running.url.removeprefix("unix://")
        with redis.Redis(unix_socket_path=path, decode_responses=True) as client:
            load_scripts(client)
            yield running, Pool(client, running.pid)
    os.sched_setaffinity(0, cores)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (_, pool):
        bytes_each = memory_of_waiters(pool)
        for tag, waiting in (("", 0), ("+", WAITING)):
            measure_alone(pool, tag, waiting)
            measure_in_line(pool, tag, waiting)
        measure_many_tenants(pool)
        print_table(pool)
        print(f"memory: {bytes_each:,.0f} bytes for each of {WAITING:,} that wait")
        print_levels(pool, bytes_each)


def test_admission() -> None:
    main()


if __name__ == "__main__":
    main()
