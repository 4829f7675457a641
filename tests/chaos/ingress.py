"""An ingress as a process of its own: the real door, a load put on it, an engine that pretends.

    python -m tests.chaos.ingress '{"url": …}'     prints `ready`, then one JSON object at its end

Its workers ask one request after the other, wait for a place no longer than they would, hold it for
a while, and settle with what they were allowed to use.
"""

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import structlog

from serve_app.sections import ClassesSection
from serve_app.tenancy.admission import AdmissionQueue, AdmissionSettings, AdmitRequest
from serve_app.tenancy.door import Door, DoorSettings
from serve_app.tenancy.key_file import KeyFile
from serve_app.tenancy.refusals import Refusal
from serve_app.tenancy.secret import load_pepper
from serve_app.tenancy.session import SessionSettings
from serve_app.tenancy.store import Store
from serve_app.tenancy.ticket import Ticket

PROMPT = 20


class Plan(msgspec.Struct, kw_only=True):
    """What to do; times in seconds."""

    url: str
    pool: str
    folder: str
    engine: str
    secrets: list[str]
    workers: int
    """None: it lives, and keeps the queue going."""
    lasts_s: float
    name: str = "i"
    hold_s: tuple[float, float] = (0.02, 0.1)
    most_tokens: int = 200
    patience_s: float = 2.0
    pause_s: float = 0.005
    """After a refusal."""
    requests: int = 1_000_000
    """Of each worker, at most."""
    lease_s: float = 2.0
    timeout_s: float = 0.2
    degraded: bool = True
    rules_version: int = 0
    batch_ceiling: float = 0.8
    clock_off_s: float = 0.0
    """What this machine's clock is wrong by."""


class Load:
    """The workers of one ingress, and what became of their requests."""

    def __init__(self, plan: Plan, door: Door, engine: asyncio.StreamWriter) -> None:
        self._plan, self._door, self._engine = plan, door, engine
        self._ends_at = time.monotonic() + plan.lasts_s
        self.outcomes: Counter[str] = Counter()
        self.longest_s = 0.0
        self.tokens = 0

    async def run(self) -> None:
        if not self._plan.workers:
            await asyncio.sleep(self._plan.lasts_s)
        await asyncio.gather(*(self._worker(number) for number in range(self._plan.workers)))

    async def _worker(self, number: int) -> None:
        secret = self._plan.secrets[number % len(self._plan.secrets)]
        for count in range(self._plan.requests):
            if time.monotonic() >= self._ends_at:
                return
            began = time.monotonic()
            ticket = await self._ask(secret, f"{self._plan.name}-{number}-{count}")
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            if ticket is None:
                await asyncio.sleep(self._plan.pause_s)
            else:
                await self._use(ticket)

    async def _ask(self, secret: str, rid: str) -> Ticket | None:
        try:
            identity = await self._door.identify(secret)
            request = AdmitRequest(
                rid=rid,
                digest=identity.digest,
                prompt_tokens=PROMPT,
                max_tokens=random.randint(1, self._plan.most_tokens),
                deadline_s=self._plan.patience_s,
            )
            ticket = await self._door.admit(request)
        except Refusal as refusal:
            self.outcomes[type(refusal).__name__] += 1
            return None
        self.outcomes["served"] += 1
        return ticket

    async def _use(self, ticket: Ticket) -> None:
        self._tell("start", ticket)
        await asyncio.sleep(random.uniform(*self._plan.hold_s))
        self._tell("end", ticket)
        output = random.randint(1, ticket.kv_need)
        self.tokens += PROMPT + output
        ticket.settle(prompt_tokens=PROMPT, output_tokens=output)

    def _tell(self, what: str, ticket: Ticket) -> None:
        told = {"do": what, "rid": ticket.rid, "kv": ticket.kv_need, "fence": ticket.fence}
        self._engine.write(json.dumps(told).encode() + b"\n")


async def main(plan: Plan) -> None:
    folder = Path(plan.folder)
    pepper = load_pepper(folder / "pepper")
    settings = AdmissionSettings(
        max_queued=5000,
        session=SessionSettings(lease_s=plan.lease_s, beat_s=0.5),
        classes=ClassesSection.model_validate({"batch": {"ceiling": plan.batch_ceiling}}),
        rules_version=plan.rules_version,
    )
    away = DoorSettings(journal_dir=folder / "journal" if plan.degraded else None)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            Store(plan.url, plan.pool, timeout_s=plan.timeout_s)
        )
        keys = KeyFile(folder / "tenants.yaml", pepper)
        door = Door(AdmissionQueue(store, keys, pepper, settings), store, pepper, away)
        await stack.enter_async_context(door)
        _, engine = await asyncio.open_unix_connection(plan.engine)
        say("ready")
        load = Load(plan, door, engine)
        await load.run()
        deadline = time.monotonic() + 20
        while (door.journal_bytes or door.degraded) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        result = {
            "outcomes": dict(load.outcomes),
            "longest_s": round(load.longest_s, 3),
            "tokens": load.tokens,
            "alone": door.admitted_alone,
            "journal_bytes": door.journal_bytes,
        }
    say(json.dumps(result))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    chosen = msgspec.json.decode(sys.argv[1], type=Plan)
    real = time.time
    time.time = lambda: real() + chosen.clock_off_s
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=sys.stderr))
    asyncio.run(main(chosen))
