"""A soak: a whole service under load while things break, and what it has kept afterwards.

    python -m tests.chaos.soak --minutes 10

Starts `deeprequest serve` with two ingresses and the demo model. Clients stream and leave in the
middle, keys are made, changed, rotated and revoked, Redis is killed and stopped, ingresses are
killed. At the end nothing may be held: no lease, no request in flight, no file descriptor; every
token that a client was given is in the ledger once. Memory is told as a slope. Exit code 1 when
something leaks.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import signal
import sys
import time
from collections import Counter

import psutil

from tests.chaos.soak_clients import Clients
from tests.chaos.soak_watch import Watch, held, ledger_of, mistakes
from tests.e2e.service import Service, running_service

LOOK_S = 5.0
QUIET_S = 60.0
"""After so long nothing may be held any more."""
STOP_S = 3.0
ENVIRONMENT = {
    "DEEPREQUEST_DEPLOYMENT__INGRESS_REPLICAS": "2",
    "DEEPREQUEST_ENGINE__TENSOR_PARALLEL_SIZE": "1",
    "DEEPREQUEST_ADMISSION__REDIS_TIMEOUT_S": "0.2",
}


class Faults:
    """Breaks one thing after the other."""

    def __init__(self, watch: Watch, seed: int) -> None:
        self._watch, self._random = watch, random.Random(seed)
        self.done: Counter[str] = Counter()

    async def run(self, lasts_s: float) -> None:
        ends_at = time.monotonic() + lasts_s - 10.0  # the end is for coming to rest
        faults = itertools.cycle(["redis killed", "ingress killed", "redis stopped"])
        while (now := time.monotonic()) < ends_at:
            await asyncio.sleep(min(self._random.uniform(8.0, 16.0), ends_at - now))
            fault = next(faults)
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                await self._strike(fault)
                self.done[fault] += 1

    async def _strike(self, fault: str) -> None:
        if fault == "ingress killed":
            self._random.choice(self._watch.of("Ingress")).send_signal(signal.SIGKILL)
            return
        server = self._watch.of("redis-server")[0]
        server.send_signal(signal.SIGKILL if fault == "redis killed" else signal.SIGSTOP)
        if fault == "redis stopped":
            await asyncio.sleep(STOP_S)
            server.send_signal(signal.SIGCONT)


async def watched(watch: Watch) -> None:
    began = time.monotonic()
    while True:
        watch.look(time.monotonic() - began)
        await asyncio.sleep(LOOK_S)


async def at_rest(service: Service) -> list[str]:
    """What is still held when waiting for it has no more sense."""
    deadline = time.monotonic() + QUIET_S
    while (still := held(service.state_dir)) and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    return still


async def soak(service: Service, lasts_s: float, count: int, seed: int) -> int:
    """The number of leaks and mistakes."""
    admin = service.cli("keys", "create", "--tenant", "ops", "--scope", "admin")["secret"]
    watch = Watch(psutil.Process(service.process.pid))
    clients, faults = Clients(service.url, admin, seed), Faults(watch, seed)
    watching = asyncio.create_task(watched(watch))
    await asyncio.gather(clients.run(count, lasts_s), faults.run(lasts_s))
    still = await at_rest(service)
    watching.cancel()
    rows = ledger_of(service.state_dir)
    table, leaks = watch.told()
    hung = [f"{n} requests hung" for name, n in clients.outcomes.items() if name == "hung"]
    failed = [f"{n} times {name}" for name, n in clients.outcomes.items() if name == "500"]
    wrong = [*still, *mistakes(clients.answers, rows), *leaks, *hung, *failed]
    given = sum(answer.output for answer in clients.answers.values())
    say(f"{lasts_s / 60:.0f} min, {count} clients; faults: {dict(faults.done)}")
    say(f"requests: {dict(clients.outcomes)}; first byte after {clients.longest_s:.1f} s at most")
    say(f"changes of keys: {dict(clients.key_changes)}")
    say(f"{len(clients.answers)} answers with {given} tokens, {len(rows)} requests in the ledger")
    for line in (*table, *(f"WRONG  {one}" for one in wrong[:50])):
        say(line)
    say(f"{len(wrong)} leaks and mistakes")
    return len(wrong)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with running_service(ENVIRONMENT) as service:
        found = asyncio.run(soak(service, asked.minutes * 60, asked.clients, asked.seed))
        if found:
            say(service.log.read_text()[-4000:])
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
