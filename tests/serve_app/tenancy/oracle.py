"""The state machine of admission in plain Python: what the scripts must do, told a second time.

Written from the design, not from the Lua: dictionaries and lists, one method a script. Names of
figures are those of the pool's record so that the two can be compared.
"""

import dataclasses
import datetime
import math
from collections import Counter, defaultdict
from fractions import Fraction
from typing import Any, NamedTuple

from tests.serve_app.tenancy.promises import LATE, Line, Promises

MINUTE = 60_000_000
QUARTER = 250_000
DAY = 86_400_000_000
METERS = ("rpm", "tpm", "itpm", "otpm")
DEBTS = ("r", "t", "i", "o")
CLASSES = ("system", "interactive", "default", "batch")
RANKS = (1, 2, 3, 4)
ALL = 100


@dataclasses.dataclass
class Config:
    """A key or a tenant."""

    id: str = ""
    tenant: str = ""
    active: bool = True
    expires: int = 0
    limits: tuple[int, int, int, int] = (0, 0, 0, 0)
    budgets: tuple[int, int] = (0, 0)
    money: tuple[int, int] = (0, 0)
    conc: int = 0
    burst: int = 60
    weight: int = 1
    ceiling: str = ""


@dataclasses.dataclass
class Rule:
    """What is so in a class: percents, and microseconds."""

    share: int = 0
    ceiling: int = ALL
    age: int = 0
    patience: int = 2**52


class Sending(NamedTuple):
    """What a request is known again by, and how often it was sent before (-1: not told)."""

    mark: str = ""
    retries: int = -1


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
    most: int
    weight: int
    rank: int
    day: int = 0
    model: str = ""
    price: str = ""
    mark: str = ""
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
    preempted: int
    room: int | None = None


class Oracle:
    def __init__(self, keys: dict[str, Config], tenants: dict[str, Config]) -> None:
        self.keys, self.tenants = keys, tenants
        self.now = 0
        self.pool: dict[str, int] = defaultdict(int)
        self.meters: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.spent: dict[tuple[str, str, int], int] = defaultdict(int)
        self.seen: dict[str, int] = {}
        self.requests: dict[str, Request] = {}
        self.promises = Promises()
        self.rules = {rank: Rule() for rank in RANKS}
        self.reserve = (40, 200)
        self.queues: dict[tuple[int, str], list[str]] = defaultdict(list)
        self.vth: dict[tuple[int, str], int] = {}
        self.weights: dict[tuple[int, str], int] = {}
        self.clock = dict.fromkeys(RANKS, 0)
        self.turned = dict.fromkeys(RANKS, 0)
        self.leases: dict[str, int] = {}
        self.replicas: dict[str, Replica] = {}
        self.granted: Counter[int] = Counter()  # quarter -> kv
        self.told: dict[str, list[str]] = defaultdict(list)
        self.ledger: list[tuple[str, str, int, int, int]] = []

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

    def config_of(self, meter: str) -> Config:
        """The limits of a meter, `k:<key>` or `t:<tenant>`."""
        kind, _, name = meter.partition(":")
        if kind == "t":
            return self.tenants.get(name, Config())
        return next(config for config in self.keys.values() if config.id == name)

    def take(self, digest: str, cost: tuple[int, ...]) -> None:
        for _, config, m in self.scopes(digest):
            for debt, limit, part in zip(DEBTS, config.limits, cost, strict=True):
                if limit:
                    m[debt] = max(0, m[debt] + part * MINUTE)

    # ---- budgets ----

    @staticmethod
    def periods(day: int) -> dict[str, int]:
        date = datetime.date(1970, 1, 1) + datetime.timedelta(day)
        return {"day": day, "month": date.year * 12 + date.month}

    def today(self) -> int:
        return self.now // DAY

    @staticmethod
    def price_of(price: str, counts: tuple[int, int, int]) -> int:
        """Micro-units of (input, cached, output), half of one rounded up."""
        if not price:
            return 0
        fresh, kept, made = (Fraction(int(part), 1_000_000) for part in price.split(" ")[1:])
        used, cached, output = counts
        exact = max(0, used - cached) * fresh + cached * kept + output * made
        return math.floor(exact + Fraction(1, 2))

    def over_budget(self, digest: str, tokens: int, price: str, money: int) -> list[Any] | None:
        today = self.periods(self.today())
        for name, config, _ in self.scopes(digest):
            for i, period in enumerate(("day", "month")):
                for unit, cost, budget in (
                    ("tokens", tokens, config.budgets[i]),
                    (price[:3], money, config.money[i]),
                ):
                    kind = f"{period} {'tokens' if unit == 'tokens' else 'money'}"
                    spent = self.spent.get((name, kind, today[period]), 0)
                    if budget and spent + cost > budget:
                        head = ["quota", period, name[0], unit, cost, budget, spent]
                        return head + self.figures(digest)
        return None

    def spend(self, digest: str, tokens: int, money: int, day: int) -> None:
        for name, _, _ in self.scopes(digest):
            for period, number in self.periods(day).items():
                if number == self.periods(self.today())[period]:
                    for unit, more in (("tokens", tokens), ("money", money)):
                        counter = name, f"{period} {unit}", number
                        self.spent[counter] = max(0, self.spent[counter] + more)

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

    def expected_output(self, digest: str, most: int, percent: int = 150) -> int:
        for record in (*self.own_meters(digest), self.pool):
            if record["ewn"] >= 8:
                return min(most, max(1, math.ceil(record["ew"] * percent / 25600)))
        return most

    def own_meters(self, digest: str) -> list[dict[str, int]]:
        config = self.keys[digest]
        return [self.meters[f"k:{config.id}"], self.meters[f"t:{config.tenant}"]]

    def kv_need(self, tokens: int) -> int:
        return min(tokens, self.pool["maxneed"] or tokens)

    def kv_wanted(self, digest: str, prompt: int, most: int) -> int:
        percent = self.pool["q"] or 100
        output = self.expected_output(digest, most, percent)
        if all(meter["ewn"] < 8 for meter in self.own_meters(digest)):
            output = max(output, min(most, self.pool["ktot"] // 16))
        return self.kv_need(prompt + output)

    # ---- capacity ----

    def recent(self) -> int:
        return sum(kv for quarter, kv in self.granted.items() if self.now // QUARTER - quarter < 4)

    def usable(self, ceiling: int = ALL) -> int:
        """A class that may fill 80 % leaves 20 % alone; beyond the 8 % that nobody may touch the
        brake adds what is missing to 20."""
        p = self.pool
        fresh, spare = self.recent(), p["ktot"] * (100 - ceiling) // 100
        brake = min(p["kbrake"], p["kbrake"] + p["ktot"] - p["kmost"] - spare)
        return min(p["ktot"] - spare - p["committed"], brake - fresh, p["kref"] - spare - fresh)

    def fits(self, kv: int, ceiling: int) -> bool:
        p = self.pool
        if not p["running"]:
            ceiling = ALL
        slots = min(p["maxrun"], max(1, p["maxrun"] * ceiling // 100))
        return p["running"] < slots and kv <= self.usable(ceiling)

    def recount(self) -> None:
        p, ready = self.pool, [r for r in self.replicas.values() if r.state == "ready"]
        before = p["ready"]
        p["ready"], p["ktot"] = len(ready), sum(r.total for r in ready)
        p["kmost"] = sum(r.total - r.total * 8 // 100 for r in ready)
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

    def adapt(self, preempted: int) -> None:
        """The share of expected outputs that is reserved, in percent."""
        p = self.pool
        reserved, since = p["q"] or 100, self.now - p["qat"]
        idle = p["waiting"] and p["running"] < p["maxrun"] and p["kref"] * 100 > 15 * p["ktot"]
        lifetime = p["eww"] / p["ewk"] * 1000 if p["ewk"] else 0
        calm = not p["qset"] or p["nset"] - p["qset"] >= 60
        if preempted > 0 and since >= 1_000_000:
            reserved = -(-reserved * 21 // 20)
            p["qat"], p["qset"] = self.now, max(1, p["nset"])
        elif idle and calm and since >= max(2_000_000, lifetime / 32):
            reserved, p["qat"] = reserved - 3, self.now
            p["qset"] = p["qset"] and p["nset"]
        least, most = self.reserve
        p["q"] = max(least, min(most, reserved))

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

    def time_of(self, kv: float, count: float) -> float:
        p = self.pool
        if p["running"] <= 0 or p["committed"] <= 0 or p["ewk"] <= 0:
            return -1
        by_kv = kv * (p["eww"] / p["ewk"]) / p["committed"]
        return max(by_kv, count * (p["ewd"] / 256) / p["running"])

    def time_to_serve(self, kv: float, count: float) -> int:
        p = self.pool
        tokens = max(0, kv - max(0, self.usable()))
        slots = max(0, count - max(0, p["maxrun"] - p["running"]))
        return math.ceil(self.time_of(tokens, slots))

    # ---- classes ----

    def rank_of(self, asked: str, key: Config) -> int:
        tenant = self.tenants.get(key.tenant, Config())
        ceilings = (asked or "default", key.ceiling or "interactive", tenant.ceiling or "system")
        return max(CLASSES.index(name) + 1 for name in ceilings)

    def waiters(self, rank: int) -> list[Request]:
        return [r for r in self.requests.values() if r.state == "q" and r.rank == rank]

    def held(self, rank: int) -> int:
        """KV tokens that a class runs with."""
        return sum(r.kv for r in self.requests.values() if r.state == "r" and r.rank == rank)

    def turn(self, newcomer: int | None = None) -> tuple[int, int]:
        """The rank whose turn it is and how far it may go."""
        waiting = [rank for rank in RANKS if self.waiters(rank)]
        late = [
            (self.turned[rank] + self.rules[rank].age, rank)
            for rank in waiting
            if 0 < self.rules[rank].age <= self.now - self.turned[rank]
        ]
        if late:
            return min(late)[1], ALL
        asking = sorted({*waiting, *({newcomer} if newcomer else ())})
        for rank in asking:
            if self.held(rank) < self.rules[rank].share * self.pool["ktot"] / 100:
                return rank, ALL
        return asking[0], self.rules[asking[0]].ceiling

    # ---- the fair queue ----

    def active(self, rank: int) -> dict[str, int]:
        """Tenants that wait in a class, with their times."""
        return {
            tenant: self.vth[its, tenant]
            for (its, tenant), queue in self.queues.items()
            if queue and its == rank
        }

    def lift(self, rank: int, tenant: str) -> int:
        active = self.active(rank)
        present = min(active.values()) if active else self.clock[rank]
        time = max(self.vth.get((rank, tenant), 0), present)
        if time:
            self.vth[rank, tenant] = time
        return time

    @staticmethod
    def cost(r: Request, cached: int, counts: tuple[int, int]) -> int:
        return (10 * (counts[0] - cached) + cached + 40 * counts[1]) // r.weight

    def start(self, rid: str, r: Request, time: int, output: int) -> None:
        p = self.pool
        self.clock[r.rank] = max(self.clock[r.rank], time)
        r.vc = self.cost(r, 0, (r.input, output))
        self.vth[r.rank, r.tenant] = time + r.vc
        p["fence"] += 1
        p["running"] += 1
        p["committed"] += r.kv
        self.granted[self.now // QUARTER] += r.kv
        r.state, r.fence, r.beg = "r", p["fence"], self.now
        rooms = [(x.room, name) for name, x in self.replicas.items() if x.room is not None]
        if rooms:
            _, r.replica = max(rooms)
            best = self.replicas[r.replica]
            assert best.room is not None
            best.room -= r.kv

    def enqueue(self, rid: str, r: Request, patience: int) -> None:
        if not self.queues[r.rank, r.tenant]:
            self.vth[r.rank, r.tenant] = self.lift(r.rank, r.tenant)
        if not self.waiters(r.rank):
            self.turned[r.rank] = self.now
        self.queues[r.rank, r.tenant].append(rid)
        self.weights[r.rank, r.tenant] = r.weight
        r.deadline = self.now + patience
        self.pool["waiting"] += 1
        self.pool["wneed"] += r.kv

    def unqueue(self, rid: str, r: Request) -> None:
        self.queues[r.rank, r.tenant].remove(rid)
        if not self.queues[r.rank, r.tenant]:
            del self.weights[r.rank, r.tenant]
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
        money = self.price_of(r.price, counts) - self.price_of(r.price, (r.input, 0, r.output))
        self.spend(r.digest, more[0], money, r.day)
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
            self.clock = dict.fromkeys(RANKS, 0)

    def end_run(self, rid: str, r: Request, how: str, counts: tuple[int, int, int]) -> None:
        p = self.pool
        used, cached, output = counts
        p["running"] -= 1
        p["committed"] -= r.kv
        p["nset"] += 1
        began = r.beg // QUARTER
        self.granted[began] = max(0, self.granted[began] - r.kv)
        replica = self.replicas.get(r.replica)
        if replica is not None and replica.room is not None:
            replica.room += r.kv
        whose = r.rank, r.tenant
        self.vth[whose] = self.vth.get(whose, 0) + self.cost(r, cached, (used, output)) - r.vc
        self.ledger.append((rid, how, used, output, self.price_of(r.price, counts)))
        self.seen.pop(rid, None)

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
            line = self.promises.line((r.rank, r.tenant), self.now)
            told = self.promise(r, line, r.mark)
            self.told[r.ingress].append(f"x {rid} full {told}")

    def promise(
        self, r: Request, line: Line, mark: str, lead: int = 0, broken: bool = False
    ) -> int:
        share = self.share(r)
        ms = self.time_of(r.kv * share, share)
        place = math.ceil(1000 * (ms if ms >= 0 else 1000 * share / max(1, self.pool["running"])))
        self.promises.lines[r.rank, r.tenant] = line
        return self.promises.promise(line, mark, place, lead, broken, self.now)

    def so_far(self, rid: str, r: Request) -> tuple[int, int, int]:
        return (r.input, 0, self.seen.get(rid, 0)) if r.state == "r" else (0, 0, 0)

    def reap(self) -> bool:
        dead = sorted((end, name) for name, end in self.leases.items() if end <= self.now)
        if not dead:
            return False
        ingress = dead[0][1]
        for rid, r in sorted(self.requests.items(), key=lambda item: item[0]):
            if r.ingress == ingress:
                self.release(rid, "lost", self.so_far(rid, r))
        del self.leases[ingress]
        self.told.pop(ingress, None)
        return True

    def grant(self) -> None:
        p = self.pool
        if p["waiting"] and p["running"] < p["maxrun"] and not self.fits(1, self.turn()[1]):
            return
        for _ in range(64):
            if not p["waiting"] or p["running"] >= p["maxrun"]:
                return
            rank, ceiling = self.turn()
            time, tenant = min((time, tenant) for tenant, time in self.active(rank).items())
            rid = self.queues[rank, tenant][0]
            r = self.requests[rid]
            if r.deadline <= self.now:
                self.refuse_late(rid, r)
            elif self.leases.get(r.ingress, 0) <= self.now:
                self.release(rid, "lost", (0, 0, 0))
            else:
                kv = self.kv_wanted(r.digest, r.input, r.most)
                if not self.fits(kv, ceiling):
                    return
                self.unqueue(rid, r)
                self.turned[rank] = self.now
                r.kv = kv
                self.start(rid, r, time, self.expected_output(r.digest, r.most))
                self.told[r.ingress].append(f"g {rid} {r.fence} {r.replica} {r.kv}")

    # ---- the scripts ----

    def refused_key(self, digest: str) -> str | None:
        key = self.keys.get(digest)
        if key is None:
            return "unknown"
        if not key.active:
            return "revoked"
        return "expired" if 0 < key.expires * 1_000_000 <= self.now else None

    def admit(
        self,
        digest: str,
        rid: str,
        ingress: str,
        numbers: tuple[int, ...],
        asked: str,
        price: str,
        sending: Sending = Sending(),  # noqa: B008 - it is immutable
    ) -> list[Any]:
        reply, swept = self._admit(digest, rid, ingress, numbers, (asked, price, sending))
        if swept or (reply[0] == "wait" and rid in self.requests and reply[-1] == "new"):
            self.grant()
        return [part for part in reply if part != "new"]

    def _admit(
        self,
        digest: str,
        rid: str,
        ingress: str,
        numbers: tuple[int, ...],
        words: tuple[str, str, Sending],
    ) -> tuple[list[Any], bool]:
        prompt, most, wait, cold, longest, bound = numbers
        asked, price, sending = words
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
        money = self.price_of(price, (prompt, 0, output))
        refusal = self.over_budget(digest, cost[1], price, money)
        refusal = refusal or self.over_limit(digest, cost)
        if refusal:
            return refusal, swept
        kv = self.kv_wanted(digest, prompt, most)
        weight = self.tenants.get(key.tenant, Config()).weight
        r = Request(
            digest,
            key.id,
            key.tenant,
            prompt,
            output,
            kv,
            ingress,
            self.now,
            longest,
            most,
            weight,
            self.rank_of(asked, key),
            self.today(),
            model="m",
            price=price,
            mark=sending.mark,
        )
        p, strayed = self.pool, False
        if self.may_start(r):
            self.start(rid, r, self.lift(r.rank, r.tenant), output)
            head: list[Any] = ["run", r.fence, r.replica]
        else:
            patience, eta, strayed = self.place(r, (wait, cold, bound), sending)
            if patience < 0:
                kind = "full" if p["ready"] else "none"
                return [kind, eta, *self.figures(digest)], swept
            self.enqueue(rid, r, patience)
            head = ["wait", p["waiting"], eta]
        self.requests[rid] = r
        self.take(digest, cost)
        self.spend(digest, cost[1], money, r.day)
        meter = self.scopes(digest)[0][2]
        meter["again"] = meter["again"] + 10 if strayed else max(0, meter["again"] - 1)
        p["nadm"] += 1
        whose = [key.id, key.tenant, weight, CLASSES[r.rank - 1]]
        tail = [kv, output, *whose, *self.figures(digest)]
        return [*head, *tail, *(["new"] if head[0] == "wait" else [])], swept

    def may_start(self, r: Request) -> bool:
        if not self.pool["ready"] or self.waiters(r.rank):
            return False
        rank, ceiling = self.turn(r.rank)
        return rank == r.rank and self.fits(r.kv, ceiling)

    def place(
        self, r: Request, bounds: tuple[int, int, int], sending: Sending
    ) -> tuple[int, int, bool]:
        """Patience (-1: none) and eta, or what it is told; whether nobody asked for this retry."""
        p, whose = self.pool, (r.rank, r.tenant)
        wait, cold, bound = bounds
        wait = min(wait, self.rules[r.rank].patience)
        own = [self.requests[rid].kv for rid in self.queues[whose]] + [r.kv]
        if not p["ready"]:
            patience = min(wait, cold)
            full = self.is_full(len(own), bound) or patience <= 0
            return (-1, self.cold_left(), False) if full else (patience, -1, False)
        eta, longest, line = self.eta(r, own), wait, self.promises.line(whose, self.now)
        due = None
        if self.promises.known(self.now):
            if sending.mark and sending.retries:
                due = self.promises.take_up(sending.mark, self.now)
            if due is None and line.out + LATE > self.now:
                bound //= 2
                longest = wait * 3 // 4 if line.last > self.now else wait
        strayed = sending.retries > 0 and due is None
        too_often = strayed and self.scopes(r.digest)[0][2]["again"] >= 100
        if too_often or self.is_full(len(own), bound) or eta * 1000 > longest:
            if due is not None:
                line.count("b", due, self.now)
            lead = max(0, eta * 1000 - wait)
            return -1, self.promise(r, line, sending.mark, lead, due is not None), False
        if due is not None:
            line.count("k", due, self.now)
            self.promises.lines[whose] = line
        return wait, eta, strayed

    def is_full(self, count: int, places: int) -> bool:
        waiting = self.pool["waiting"]
        return waiting >= places or count > 4 * (places - waiting)

    def share(self, r: Request) -> float:
        """How much all tenants of its class are served for one of its own."""
        waiting = {tenant: w for (rank, tenant), w in self.weights.items() if rank == r.rank}
        return max(1.0, sum(({r.tenant: r.weight} | waiting).values()) / r.weight)

    def eta(self, r: Request, own: list[int]) -> int:
        share = self.share(r)
        peers = self.waiters(r.rank)
        higher = [x for rank in RANKS if rank < r.rank for x in self.waiters(rank)]
        kv = min(sum(x.kv for x in peers) + r.kv, sum(own) * share) + sum(x.kv for x in higher)
        count = min(len(peers) + 1, len(own) * share) + len(higher)
        return self.time_to_serve(kv, count)

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

    def see(self, rid: str, output: int) -> None:
        self.seen[rid] = output
        r = self.requests[rid]
        need = self.kv_need(r.input + output + output // 8)
        if r.input + output > r.kv and need > r.kv:
            replica = self.replicas.get(r.replica)
            if replica is not None and replica.room is not None:
                replica.room -= need - r.kv
            self.pool["committed"] += need - r.kv
            r.kv = need

    def cap(self, name: str, state: str, numbers: tuple[int, int, int, int, int]) -> None:
        ttl, total, free, slots, preempted = numbers
        more = 0
        if state == "stopped":
            self.replicas.pop(name, None)
        else:
            held = self.replicas.get(name)
            more = preempted - held.preempted if held else 0
            room = held.room if held else None
            room = (total if room is None else room) if state == "ready" else None
            self.replicas[name] = Replica(
                self.now + ttl, state, total, free, slots, preempted, room
            )
        self.drop_silent()
        self.recount()
        self.adapt(more)
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
                self.release(rid, "lost", self.so_far(rid, r))
                self.told[r.ingress].append(f"s {rid}")
        self.reap()
        self.grant()
