"""The serving path alone: an engine that only emits tokens, and everything between it and a client.

Starts the service's real processes (HAProxy, ingress, model replica, Redis) around a rank without a
model, and reads 64 streams of 2,000 tokens, one event a token, from a load generator on the same
cores: flat out, then at a pace. Prints events a second, the gaps between the events of a stream,
and the processor time that each process spent per event. Nothing is asserted about speed.

    python -m tests.bench.bench_serving_path [--streams 64] [--tokens 2000] [--pace 0 400]
        [--direct] [--rounds 3]

What an event costs where each is written and read by itself (25,000 a second, two Zen 4 cores, in
microseconds of processor time): ingress 26, nearly half of it the kernel's send; HAProxy 14; client
11; replica 5; Ray's idle processes 5; engine 2. Faster than that, events share writes: flat out the
ingress spends 6, the replica 4, HAProxy and the client less than 1 each.

`--direct` also reads past HAProxy, from the ingress itself. `make bench` runs it with the defaults.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.service import ROOT, Service, free_port, stopped

PARTS = {"haproxy": "haproxy", "Ingress": "ingress", "ModelDeployment": "replica"}
"""What a process's name holds, and which part of the path it is."""
RANK = "RankActor"
STREAMS, TOKENS = 64, 2000


@pytest.mark.e2e
def test_the_serving_path_alone() -> None:
    assert measure(STREAMS, TOKENS, paces=[0, 400], rounds=2, direct=False) > 0


def measure(streams: int, tokens: int, paces: list[int], rounds: int, direct: bool) -> float:
    """Prints what each round showed; the best rate."""
    cores = len(os.sched_getaffinity(0))
    print(f"\nserving path, {streams} streams of {tokens}, client on the same {cores} cores")
    best = 0.0
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        service = started(Path(folder))
        try:
            load(service, service.port, 2, 50, 0)
            for pace in paces:
                for _ in range(rounds):
                    best = max(best, report(service, service.port, streams, tokens, pace))
            if direct:
                print("past HAProxy:")
                report(service, ingress_port(service), streams, tokens, paces[0])
        finally:
            stopped(service.process)
    return best


def started(folder: Path) -> Service:
    state_dir, log, port = folder / "state", folder / "log", free_port()
    command = [sys.executable, str(ROOT / "tests/bench/noop_service.py"), str(port), str(state_dir)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    service = Service(port, state_dir, process, log)
    service.wait_until_ready()
    return service


def report(service: Service, port: int, streams: int, tokens: int, pace: int) -> float:
    """One load, printed; its events a second."""
    before = cpu_seconds(service.process.pid)
    found = load(service, port, streams, tokens, pace)
    after = cpu_seconds(service.process.pid)
    events = found["text_events"]
    spent: dict[str, float] = defaultdict(float, load=found["load_cpu_s"])
    for process in before.keys() & after.keys():
        spent[part_of(process)] += after[process] - before[process]
    pacing = f"{pace}/s a stream" if pace else "flat out"
    print(f"  {pacing:>14}: {found['events_per_s']:7.0f} events/s of {events}, ", end="")
    print("gap ms p50 {gap_ms_p50:.1f} p99 {gap_ms_p99:.1f}".format_map(found), end="")
    print(" (between reads p50 {read_gap_ms_p50:.1f}".format_map(found), end="")
    print(" p99 {read_gap_ms_p99:.1f} max {gap_ms_max:.0f})".format_map(found), end="")
    print(", first ms p50 {first_ms_p50:.0f} max {first_ms_max:.0f}".format_map(found))
    costs = "  ".join(f"{part} {used / events * 1e6:.1f}" for part, used in sorted(spent.items()))
    print(f"{'':18}us of processor time an event: {costs}", flush=True)
    return float(found["events_per_s"])


def load(service: Service, port: int, streams: int, tokens: int, pace: int) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tests/bench/sse_load.py"), str(port), service.key]
    done = subprocess.run(
        [*command, str(streams), str(tokens), str(pace)], stdout=subprocess.PIPE, check=True
    )
    return dict(json.loads(done.stdout))


def cpu_seconds(root: int) -> dict[psutil.Process, float]:
    """Processor time of each of the service's processes so far."""
    processes = psutil.Process(root).children(recursive=True)
    used = {process: process.cpu_times() for process in processes}
    return {process: times.user + times.system for process, times in used.items()}


def part_of(process: psutil.Process) -> str:
    name = " ".join(process.cmdline()) or process.name()
    if RANK in name:
        return "engine"
    return next((part for mark, part in PARTS.items() if mark in name), "others")


def ingress_port(service: Service) -> int:
    """Where the ingress itself answers HTTP."""
    for process in psutil.Process(service.process.pid).children(recursive=True):
        if part_of(process) != "ingress":
            continue
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and 21000 <= connection.laddr.port < 30000:
                return int(connection.laddr.port)
    raise AssertionError("no ingress listens")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--pace", type=int, nargs="+", default=[0, 400])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--direct", action="store_true")
    given = parser.parse_args()
    measure(given.streams, given.tokens, given.pace, given.rounds, given.direct)


if __name__ == "__main__":
    main()
