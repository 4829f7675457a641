"""A simulated pool: the real scripts on a real Redis, an engine and clients of one event queue.

Time is simulated: it is told to the scripts, and minutes take seconds. The engine gives every
running request the same pace, holds KV for what they have so far and preempts the youngest when it
has none left, as the real one does: that one goes on where it was when there is room for it again.
"""

import dataclasses
import heapq
import itertools
import json
import random
from collections.abc import Callable
from typing import Any

import redis

from serve_app.tenancy.store import STABLE_KEYS, scripts

SECOND = 1_000_000
PREFIX = "dr:{simulation}:"
REPORT_US = SECOND // 4
PATIENCE_US = 600 * SECOND


@dataclasses.dataclass
class Tenant:
    """Who sends what: a backlog that is always kept up, so many requests a second, or so many
    people who think for a while between two requests."""

    name: str
    prompt: tuple[int, int]
    output: tuple[int, int]
    most: int = 8192
    weight: int = 1
    backlog: int = 0
    rate: float = 0.0
    people: int = 0
    think_s: float = 0.0
    patience_us: int = PATIENCE_US
    returns: float = 0.0
    """How many of those who are refused come back, and do so when they were told to."""
    deaf_us: int = 0
    """They come back after so long instead."""
    # what became of its requests
    cost: int = 0
    """Served: a token of input counts 1, one of output 4."""
    waits_us: list[int] = dataclasses.field(default_factory=list)
    etas_us: list[int] = dataclasses.field(default_factory=list)
    """What those were told who waited."""
    told_us: list[int] = dataclasses.field(default_factory=list)
    """How long those were to stay away who came back."""
    let_in: int = 0
    """How many of them were served then."""

    def p99_wait_us(self) -> int:
        return sorted(self.waits_us)[len(self.waits_us) * 99 // 100]


@dataclasses.dataclass
class Request:
    tenant: Tenant
    prompt: int
    output: int
    sent: int
    mark: str = ""
    told_us: int = 0
    eta_us: int = -1
    began: int = 0
    """When it began, or went on."""
    made: int = 0
    """Output before that."""


class Simulation:
    """One pool with one replica."""

    def __init__(
        self,
        client: redis.Redis,
        tenants: list[Tenant],
        *,
        kv: int,
        slots: int = 10_000,
        token_us: int = 20_000,
        bound: int = 10_000,
        alter: Callable[[str], str] = lambda text: text,
        seed: int = 1,
    ) -> None:
        """`token_us`: pace of every request that runs. `alter` makes other scripts of the real."""
        self._execute: Callable[..., Any] = client.execute_command
        self._client, self._tenants = client, {tenant.name: tenant for tenant in tenants}
        self._kv, self._slots, self._token_us, self._bound = kv, slots, token_us, bound
        self._random, self._numbers = random.Random(seed), itertools.count()
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._waiting: dict[str, Request] = {}
        self._running: dict[str, Request] = {}
        self._preempted: dict[str, Request] = {}
        self._preempted_at: list[int] = []
        self.finished = 0
        self.now = SECOND
        self._counted_from = 0
        self.busy: list[float] = []
        """Share of the slots that were taken, four times a second."""
        self.fill: list[float] = []
        """Share of the KV cache that was."""
        client.flushall()
        self._shas = {
            name: client.script_load(alter(script.text)) for name, script in scripts().items()
        }
        fields = {"status": "active", "print": "1", "op": "create", "by": "test"}
        keys = [["key", t.name, fields | {"id": t.name, "ten": t.name}] for t in tenants]
        weights = [["ten", t.name, fields | {"weight": t.weight}] for t in tenants]
        self._script("conf", "epoch", 1, json.dumps([*keys, *weights]))
        self._script("beat", "ingress", 10**15)

    def run(self, seconds: float, warm_up_s: float = 0.0) -> None:
        """Serves for so long; waits that began in the warm-up, when lengths are not yet known, do
        not count."""
        self._counted_from = self.now + round(warm_up_s * SECOND)
        self._report()
        self._tell_output()
        for tenant in self._tenants.values():
            for _ in range(tenant.backlog):
                self._send(self._new(tenant))
            if tenant.rate:
                self._arrive(tenant)
            for _ in range(tenant.people):
                self._think(tenant)
        end = self.now + round(seconds * SECOND)
        while self._events[0][0] <= end:
            self.now, _, event = heapq.heappop(self._events)
            event()

    def preemptions(self) -> int:
        return sum(moment >= self._counted_from for moment in self._preempted_at)

    # ---- clients ----

    def _arrive(self, tenant: Tenant) -> None:
        def arrive() -> None:
            self._send(self._new(tenant))
            self._arrive(tenant)

        self._after(round(self._random.expovariate(tenant.rate) * SECOND), arrive)

    def _think(self, tenant: Tenant) -> None:
        wait_us = round(self._random.expovariate(1 / tenant.think_s) * SECOND)
        self._after(wait_us, lambda: self._send(self._new(tenant)))

    def _new(self, tenant: Tenant) -> Request:
        prompt, output = self._random.randint(*tenant.prompt), self._random.randint(*tenant.output)
        return Request(tenant, prompt, output, self.now, f"m{next(self._numbers)}")

    def _send(self, request: Request) -> None:
        tenant, rid = request.tenant, f"r{next(self._numbers)}"
        self._waiting[rid] = request
        times = (tenant.patience_us, 0, 10**15, self._bound)
        head = (tenant.name, rid, "ingress", request.prompt, tenant.most)
        reply = self._script("admit", *head, *times, "", "m", "", request.mark, -1)
        if reply[0] == "run":
            self._start(rid)
        elif reply[0] == "wait":
            request.eta_us = reply[2] * 1000
        else:
            self._refused(rid, reply[1] * 1000)
        self._read_news()

    def _refused(self, rid: str, told_us: int) -> None:
        request = self._waiting.pop(rid)
        tenant = request.tenant
        self._came_back(request, let_in=False)
        if self._random.random() < tenant.returns:
            self._after(tenant.deaf_us or told_us, lambda: self._send_again(request, told_us))
        elif tenant.people:
            self._think(tenant)
        elif tenant.backlog:
            self._after(SECOND, lambda: self._send(self._new(tenant)))

    def _send_again(self, request: Request, told_us: int) -> None:
        request.sent, request.told_us, request.eta_us = self.now, told_us, -1
        self._send(request)

    def _came_back(self, request: Request, *, let_in: bool) -> None:
        if request.told_us and request.sent >= self._counted_from:
            request.tenant.told_us.append(request.told_us)
            request.tenant.let_in += let_in

    # ---- the engine ----

    def _start(self, rid: str) -> None:
        request = self._waiting.pop(rid)
        tenant = request.tenant
        if request.sent >= self._counted_from:
            tenant.waits_us.append(self.now - request.sent)
            tenant.etas_us.append(request.eta_us)
        self._came_back(request, let_in=True)
        self._go_on(rid, request)
        if tenant.backlog:
            self._after(0, lambda: self._send(self._new(tenant)))

    def _go_on(self, rid: str, request: Request) -> None:
        request.began = began = self.now
        self._running[rid] = request
        left = request.output - request.made
        self._after(left * self._token_us, lambda: self._end(rid, began))

    def _end(self, rid: str, began: int) -> None:
        request = self._running.get(rid)
        if request is None or request.began != began:
            return  # it was preempted in between
        del self._running[rid]
        self.finished += self.now >= self._counted_from
        request.tenant.cost += request.prompt + 4 * request.output
        if request.tenant.people:
            self._think(request.tenant)
        self._script("settle", rid, "ok", request.prompt, 0, request.output, 0)
        self._read_news()

    def _made(self, request: Request) -> int:
        made = request.made + (self.now - request.began) // self._token_us
        return min(request.output, made)

    def _used(self, request: Request) -> int:
        return request.prompt + self._made(request)

    def _make_room(self) -> int:
        """KV tokens in use, when some were preempted or went on."""
        used = sum(map(self._used, self._running.values()))
        while used > self._kv:
            rid = [*self._running][-1]
            youngest = self._running.pop(rid)
            used -= self._used(youngest)
            youngest.made = self._made(youngest)
            self._preempted = {rid: youngest} | self._preempted
            self._preempted_at.append(self.now)
        for rid, request in [*self._preempted.items()]:
            need = request.prompt + request.made
            if used + need + len(self._running) > self._kv:
                break
            del self._preempted[rid]
            self._go_on(rid, request)
            used += need
        return used

    def _report(self) -> None:
        used = self._make_room()
        if self.now >= self._counted_from:
            self.busy.append(len(self._running) / self._slots)
            self.fill.append(used / self._kv)
        counts = (len(self._running), len(self._preempted), self._slots, 1, len(self._preempted_at))
        waiting = sum(request.prompt + request.made for request in self._preempted.values())
        truth = (self._kv, self._kv - used, used + waiting, *counts)
        self._script("cap", "replica", 10**15, "ready", *truth, "inc", "{}")
        self._script("tick", 0)
        self._read_news()
        self._after(REPORT_US, self._report)

    def _tell_output(self) -> None:
        """What an ingress tells in each beat."""
        told: list[str | int] = []
        for rid, request in self._running.items():
            told += (rid, self._made(request))
        for start in range(0, len(told), 128):
            self._script("seen", "ingress", *told[start : start + 128])
        self._after(SECOND, self._tell_output)

    # ---- Redis ----

    def _script(self, name: str, *args: str | int) -> Any:
        keys = [PREFIX + key for key in STABLE_KEYS]
        return self._execute("EVALSHA", self._shas[name], len(keys), *keys, self.now, *args)

    def _read_news(self) -> None:
        pipe = self._client.pipeline()
        pipe.lrange(f"{PREFIX}gr:ingress", 0, -1)
        pipe.delete(f"{PREFIX}gr:ingress")
        for line in pipe.execute()[0]:
            kind, rid, *rest = line.split(" ")
            if kind == "g":
                self._start(rid)
            elif kind == "x":
                self._refused(rid, int(rest[1]) * 1000)

    def _after(self, wait_us: int, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + wait_us, next(self._numbers), event))
