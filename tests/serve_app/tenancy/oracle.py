"""The state machine of admission in plain Python: what the scripts must do, told a second time.

Written from the design, not from the Lua: dictionaries and lists, one method a script. Names of
figures are those of the pool's record so that the two can be compared.
"""

import dataclasses
import math
from collections import defaultdict
from typing import Any

MINUTE = 60_000_000
QUARTER = 250_000
METERS = ("rpm", "tpm", "itpm", "otpm")
DEBTS = ("r", "t", "i", "o")


@dataclasses.dataclass
class Config:
    """A key or a tenant."""

    id: str = ""
    tenant: str = ""
    active: bool = True
    expires: int = 0
    limits: tuple[int, int, int, int] = (0, 0, 0, 0)
    conc: int = 0
    burst: int = 60
    weight: int = 1


@dataclasses.dataclass
class Request:
    digest: str
    key: str
    tenant: str
    input: int
    output: int
    kv: int
    ingress: str
    enq: int
    mx: int
    weight: int
    state: str = "q"
    deadline: int = 0
    beg: int = 0
    vc: int = 0
    fence: int = 0
    replica: str = ""


@dataclasses.dataclass
class Replica:
    until: int
    state: str
    total: int
    free: int
    slots: int
    room: int | None = None


class Oracle:
    def __init__(self, keys: dict[str, Config], tenants: dict[str, Config]) -> None:
        self.keys, self.tenants = keys, tenants
        self.now = 0
        self.pool: dict[str, int] = defaultdict(int)
        self.meters: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.requests: dict[str, Request] = {}
        self.queues: dict[str, list[str]] = defaultdict(list)
        self.vth: dict[str, int] = {}
        self.leases: dict[str, int] = {}
        self.replicas: dict[str, Replica] = {}
        self.granted: list[tuple[int, int]] = []  # (quarter, kv)
        self.told: dict[str, list[str]] = defaultdict(list)
        self.ledger: list[tuple[str, str, int, int]] = []

    # ---- meters ----

    def meter(self, name: str, config: Config) -> dict[str, int]:
        m = self.meters[name]
        idle = max(0, self.now - m["at"])
        for debt, limit in zip(DEBTS, config.limits, strict=True):
            if limit:
                m[debt] = max(0, m[debt] - idle * limit)
        m["at"] = self.now
        return m

    def scopes(self, digest: str) -> list[tuple[str, Config, dict[str, int]]]:
        key = self.keys[digest]
        tenant = self.tenants.get(key.tenant, Config())
        names = (f"k:{key.id}", f"t:{key.tenant}")
        return [(n, c, self.meter(n, c)) for n, c in zip(names, (key, tenant), strict=True)]

    def take(self, digest: str, cost: tuple[int, ...]) -> None:
        for _, config, m in self.scopes(digest):
            for debt, limit, part in zip(DEBTS, config.limits, cost, strict=True):
                if limit:
                    m[debt] = max(0, m[debt] + part * MINUTE)

    def figures(self, digest: str) -> list[int]:
        out: list[int] = []
        for i, debt in enumerate(DEBTS):
            best = (-1, -1, 0)
            for _, config, m in self.scopes(digest):
                limit = config.limits[i]
                if limit:
                    left = max(0, limit * config.burst * 1_000_000 - m[debt]) // MINUTE
                    if best[0] < 0 or left < best[1]:
                        best = (limit, left, -(-m[debt] // limit))
            out += best
        return out

    def in_flight(self, scope: str) -> int:
        def of(r: Request) -> bool:
            return scope in (f"k:{r.key}", f"t:{r.tenant}")

        return sum(of(r) for r in self.requests.values())

    def over_limit(self, digest: str, cost: tuple[int, ...]) -> list[Any] | None:
        longest: list[Any] | None = None
        for name, config, m in self.scopes(digest):
            kind = name[0]
            wait, which = 0, ""
            for meter, debt, limit, part in zip(METERS, DEBTS, config.limits, cost, strict=True):
                if not limit or not part:
                    continue
                most = limit * config.burst * 1_000_000
                if part * MINUTE > most:
                    return ["burst", meter, kind, part, most // MINUTE]
                pause = max(0, -(-(m[debt] + part * MINUTE - most) // limit))
                if pause > wait:
                    wait, which = pause, meter
            if not wait and config.conc and self.in_flight(name) >= config.conc:
                wait = max(1_000_000, m["ewd"] // 256 // config.conc * 1000)
                which = "concurrency"
            if wait and (longest is None or wait > longest[3]):
                longest = ["limit", which, kind, wait]
        return longest and longest + self.figures(digest)

    def expected_output(self, digest: str, most: int) -> int:
        for record in (*(m for _, _, m in self.scopes(digest)), self.pool):
            if record["ewn"] >= 8:
                return min(most, max(1, math.ceil(record["ew"] * 3 / 512)))
        return most

    # ---- capacity ----

    def recent(self) -> int:
        return sum(kv for quarter, kv in self.granted if self.now // QUARTER - quarter < 4)

    def usable(self) -> int:
        p = self.pool
        fresh = self.recent()
        return min(p["ktot"] - p["committed"], p["kbrake"] - fresh, p["kref"] - fresh)

    def fits(self, kv: int) -> bool:
        return self.pool["running"] < self.pool["maxrun"] and kv <= self.usable()

    def recount(self) -> None:
        p, ready = self.pool, [r for r in self.replicas.values() if r.state == "ready"]
        before = p["ready"]
        p["ready"], p["ktot"] = len(ready), sum(r.total for r in ready)
        p["kbrake"] = sum(r.free - r.total * 8 // 100 for r in ready)
        p["kref"] = sum(r.free for r in ready)
        p["maxrun"] = sum(r.slots for r in ready)
        p["maxneed"] = max((r.total - r.total * 8 // 100 for r in ready), default=0)
        if before and not ready:
            p["emptyat"] = self.now
        if ready and not before and p["emptyat"]:
            took = self.now - p["emptyat"]
            p["cold"] = (p["cold"] * 3 + took) // 4 if p["cold"] else took
            p["emptyat"] = 0

    def drop_silent(self) -> bool:
        silent = [name for name, r in self.replicas.items() if r.until <= self.now]
        for name in silent:
            del self.replicas[name]
        if silent:
            self.recount()
        return bool(silent)

    def cold_left(self) -> int:
        p = self.pool
        gone = self.now - p["emptyat"] if p["emptyat"] else 0
        return max(1000, ((p["cold"] or 10_000_000) - gone) // 1000)

    def time_to_serve(self, kv: int, count: int) -> int:
        p = self.pool
        if p["running"] <= 0 or p["committed"] <= 0 or p["ewk"] <= 0:
            return -1
        tokens = max(0, kv - max(0, self.usable()))
        slots = max(0, count - max(0, p["maxrun"] - p["running"]))
        by_kv = tokens * (p["eww"] / p["ewk"]) / p["committed"]
        return math.ceil(max(by_kv, slots * (p["ewd"] / 256) / p["running"]))

    # ---- the fair queue ----

    def active(self) -> dict[str, int]:
        return {t: self.vth[t] for t, queue in self.queues.items() if queue}

    def lift(self, tenant: str) -> int:
        active = self.active()
        present = min(active.values()) if active else self.pool["vclock"]
        time = max(self.vth.get(tenant, 0), present)
        if time:
            self.vth[tenant] = time
        return time

    @staticmethod
    def cost(r: Request, cached: int, counts: tuple[int, int]) -> int:
        return (10 * (counts[0] - cached) + cached + 40 * counts[1]) // r.weight

    def start(self, rid: str, r: Request, time: int) -> None:
        p = self.pool
        p["vclock"] = max(p["vclock"], time)
        r.vc = self.cost(r, 0, (r.input, r.output))
        self.vth[r.tenant] = time + r.vc
        p["fence"] += 1
        p["running"] += 1
        p["committed"] += r.kv
        self.granted.append((self.now // QUARTER, r.kv))
        r.state, r.fence, r.beg = "r", p["fence"], self.now
        rooms = [(x.room, name) for name, x in self.replicas.items() if x.room is not None]
        if rooms:
            _, r.replica = max(rooms)
            best = self.replicas[r.replica]
            assert best.room is not None
            best.room -= r.kv

    def unqueue(self, rid: str, r: Request) -> None:
        self.queues[r.tenant].remove(rid)
        self.pool["waiting"] -= 1
        self.pool["wneed"] -= r.kv

    def release(self, rid: str, how: str, counts: tuple[int, int, int]) -> None:
        p, r = self.pool, self.requests.pop(rid)
        used, cached, output = counts
        ran = r.state == "r"
        took = max(0, (self.now - r.beg) // 1000)
        if ran:
            self.end_run(rid, r, how, counts)
        else:
            self.unqueue(rid, r)
            p["ncan"] += 1
        more = (used + output - r.input - r.output, used - r.input, output - r.output)
        self.take(r.digest, (0, *more))
        for _, _, m in self.scopes(r.digest):
            if ran:
                for field, value in (("nreq", 1), ("nin", used), ("nout", output)):
                    m[field] += value
                m["ncached"] += cached
            if how == "ok":
                self.learn(m, output, took)
        if how == "ok":
            self.learn(p, output, took)
            p["eww"] = p["eww"] * 15 // 16 + r.kv * took
            p["ewk"] = p["ewk"] * 15 // 16 + r.kv
        if not p["running"] and not p["waiting"]:
            self.vth.clear()
            p["vclock"] = 0

    def end_run(self, rid: str, r: Request, how: str, counts: tuple[int, int, int]) -> None:
        p = self.pool
        used, cached, output = counts
        p["running"] -= 1
        p["committed"] -= r.kv
        p["nset"] += 1
        if (r.beg // QUARTER, r.kv) in self.granted:
            self.granted.remove((r.beg // QUARTER, r.kv))
        replica = self.replicas.get(r.replica)
        if replica is not None and replica.room is not None:
            replica.room += r.kv
        self.vth[r.tenant] = self.vth.get(r.tenant, 0) + self.cost(r, cached, (used, output)) - r.vc
        self.ledger.append((rid, how, used, output))

    @staticmethod
    def learn(record: dict[str, int], output: int, took: int) -> None:
        span = min(record["ewn"] + 1, 16)
        for field, sample in (("ew", output), ("ewd", took)):
            record[field] += math.floor((sample * 256 - record[field]) / span)
        record["ewn"] += 1

    def refuse_late(self, rid: str, r: Request) -> None:
        self.release(rid, "deadline", (0, 0, 0))
        if not self.pool["ready"]:
            self.told[r.ingress].append(f"x {rid} none {self.cold_left()}")
        else:
            p = self.pool
            wait = max(1000, self.time_to_serve(p["wneed"] + r.kv, p["waiting"] + 1))
            self.told[r.ingress].append(f"x {rid} full {wait}")

    def reap(self) -> bool:
        dead = sorted((end, name) for name, end in self.leases.items() if end <= self.now)
        if not dead:
            return False
        ingress = dead[0][1]
        for rid, r in list(self.requests.items()):
            if r.ingress == ingress:
                self.release(rid, "lost", (r.input if r.state == "r" else 0, 0, 0))
        del self.leases[ingress]
        self.told.pop(ingress, None)
        return True

    def grant(self) -> None:
        p = self.pool
        for _ in range(64):
            if not p["waiting"] or p["running"] >= p["maxrun"]:
                return
            time, tenant = min((time, tenant) for tenant, time in self.active().items())
            rid = self.queues[tenant][0]
            r = self.requests[rid]
            if r.deadline <= self.now:
                self.refuse_late(rid, r)
            elif self.leases.get(r.ingress, 0) <= self.now:
                self.release(rid, "lost", (0, 0, 0))
            else:
                kv = min(r.kv, p["maxneed"])
                if not self.fits(kv):
                    return
                self.unqueue(rid, r)
                r.kv = kv
                self.start(rid, r, time)
                self.told[r.ingress].append(f"g {rid} {r.fence} {r.replica}")

    # ---- the scripts ----

    def refused_key(self, digest: str) -> str | None:
        key = self.keys.get(digest)
        if key is None:
            return "unknown"
        if not key.active:
            return "revoked"
        return "expired" if 0 < key.expires * 1_000_000 <= self.now else None

    def admit(self, digest: str, rid: str, ingress: str, numbers: tuple[int, ...]) -> list[Any]:
        reply, swept = self._admit(digest, rid, ingress, numbers)
        if swept or (reply[0] == "wait" and rid in self.requests and reply[-1] == "new"):
            self.grant()
        return [part for part in reply if part != "new"]

    def _admit(
        self, digest: str, rid: str, ingress: str, numbers: tuple[int, ...]
    ) -> tuple[list[Any], bool]:
        prompt, most, wait, cold, longest, bound = numbers
        if self.leases.get(ingress, 0) <= self.now:
            return ["lease"], False
        reason = self.refused_key(digest)
        if reason:
            return ["auth", reason], False
        swept = self.reap()
        swept = self.drop_silent() or swept
        key = self.keys[digest]
        output = self.expected_output(digest, most)
        cost = (1, prompt + output, prompt, output)
        refusal = self.over_limit(digest, cost)
        if refusal:
            return refusal, swept
        kv = prompt + output
        if self.pool["maxneed"]:
            kv = min(kv, self.pool["maxneed"])
        weight = self.tenants.get(key.tenant, Config()).weight
        r = Request(
            digest, key.id, key.tenant, prompt, output, kv, ingress, self.now, longest, weight
        )
        p = self.pool
        if not p["waiting"] and p["ready"] and self.fits(kv):
            self.start(rid, r, self.lift(r.tenant))
            head: list[Any] = ["run", r.fence, r.replica]
        else:
            patience, eta = self.place(r, wait, cold, bound)
            if patience < 0:
                kind = "full" if p["ready"] else "none"
                return [kind, eta, *self.figures(digest)], swept
            if not self.queues[r.tenant]:
                self.vth[r.tenant] = self.lift(r.tenant)
            self.queues[r.tenant].append(rid)
            r.deadline = self.now + patience
            p["waiting"] += 1
            p["wneed"] += kv
            head = ["wait", p["waiting"], eta]
        self.requests[rid] = r
        self.take(digest, cost)
        p["nadm"] += 1
        tail = [kv, output, key.id, key.tenant, weight, *self.figures(digest)]
        return [*head, *tail, *(["new"] if head[0] == "wait" else [])], swept

    def place(self, r: Request, wait: int, cold: int, bound: int) -> tuple[int, int]:
        p = self.pool
        if not p["ready"]:
            patience = min(wait, cold)
            full = patience <= 0 or p["waiting"] >= bound
            return (-1, self.cold_left()) if full else (patience, -1)
        own = [self.requests[rid].kv for rid in self.queues[r.tenant]] + [r.kv]
        tenants = len(self.active() | {r.tenant: 0})
        kv = min(p["wneed"] + r.kv, sum(own) * tenants)
        eta = self.time_to_serve(kv, min(p["waiting"] + 1, len(own) * tenants))
        if p["waiting"] >= bound or eta * 1000 > wait:
            return -1, max(1000, eta - wait // 1000)
        return wait, eta

    def settle(self, rid: str, how: str, counts: tuple[int, int, int]) -> int:
        if rid not in self.requests:
            return 0
        if self.requests[rid].state == "r":
            self.release(rid, how, counts)
        else:
            self.release(rid, "cancel", (0, 0, 0))
        self.grant()
        return 1

    def cancel(self, rid: str) -> int:
        if rid not in self.requests:
            return 0
        self.release(rid, "cancel", (0, 0, 0))
        self.grant()
        return 1

    def cap(self, name: str, state: str, numbers: tuple[int, int, int, int]) -> None:
        ttl, total, free, slots = numbers
        if state == "stopped":
            self.replicas.pop(name, None)
        else:
            held = self.replicas.get(name)
            room = held.room if held else None
            room = (total if room is None else room) if state == "ready" else None
            self.replicas[name] = Replica(self.now + ttl, state, total, free, slots, room)
        self.drop_silent()
        self.recount()
        self.grant()

    def tick(self) -> None:
        self.drop_silent()
        waiting = [(r.deadline, rid) for rid, r in self.requests.items() if r.state == "q"]
        for deadline, rid in sorted(waiting):
            if deadline <= self.now:
                self.refuse_late(rid, self.requests[rid])
        running = [(r.beg + r.mx, rid) for rid, r in self.requests.items() if r.state == "r"]
        for end, rid in sorted(running):
            if end <= self.now:
                r = self.requests[rid]
                self.release(rid, "lost", (r.input, 0, 0))
                self.told[r.ingress].append(f"s {rid}")
        self.reap()
        self.grant()
