"""The scripts against the oracle: random steps on a real Redis, compared after each one."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.store import STABLE_KEYS, scripts
from tests.serve_app.tenancy.oracle import Config, Oracle

EPOCH_US = 1_764_000_000_000_000
PREFIX = "dr:{machine}:"
KEYS = {
    "free": Config("k-free", "acme"),
    "five": Config("k-five", "acme", limits=(5, 0, 0, 0)),
    "tokens": Config("k-tokens", "bolt", limits=(0, 700, 0, 0), conc=3),
    "odd": Config("k-odd", "bolt", limits=(7, 0, 999, 333), burst=30),
    "dying": Config("k-dying", "coal", conc=2, expires=EPOCH_US // 1_000_000 + 30),
}
TENANTS = {
    "acme": Config(limits=(40, 5000, 0, 0), conc=6),
    "bolt": Config(weight=3),
}
POOL = [
    "fence",
    "committed",
    "running",
    "waiting",
    "wneed",
    "vclock",
    "ready",
    "ktot",
    "kbrake",
    "kref",
    "maxrun",
    "maxneed",
    "ew",
    "ewn",
    "ewd",
    "eww",
    "ewk",
    "cold",
    "emptyat",
    "nadm",
    "nset",
    "ncan",
]
TENANT_NAMES = ("acme", "bolt", "coal")
INGRESSES = ("i1", "i2")
REPLICAS = ("r1", "r2")
DIGESTS = ("free", "five", "tokens", "odd", "dying", "unknown", "free", "five", "tokens", "odd")
TOKENS, OUTPUTS = st.integers(0, 120), st.integers(1, 300)
MOMENTS = st.sampled_from((100_000, 1, 1_000_000, 250_000, 3_000_000, 11_999_999, 31_000_000))


def _fields(config: Config) -> dict[str, Any]:
    names = ("rpm", "tpm", "itpm", "otpm")
    return dict(zip(names, config.limits, strict=True)) | {
        "conc": config.conc,
        "burst": config.burst,
        "weight": config.weight,
        "id": config.id,
        "ten": config.tenant,
        "status": "active" if config.active else "revoked",
        "expires": config.expires,
    }


class Machine(RuleBasedStateMachine):
    """Every rule does one step on both sides and compares what they say."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        path = self.url.removeprefix("unix://")
        self.redis = redis.Redis(unix_socket_path=path, decode_responses=True)
        self.raw = redis.Redis(unix_socket_path=path)
        self.numbers = itertools.count()
        self.starts: dict[str, list[int]] = {}
        self.oracle = Oracle({}, {})

    @initialize()
    def empty(self) -> None:
        self.redis.flushall()
        keys = {digest: Config(**vars(config)) for digest, config in KEYS.items()}
        self.oracle = Oracle(keys, TENANTS)
        self.oracle.now = EPOCH_US
        assert self.run("admit", "free", "r", "i1", 1, 1, 1, 1, 1, 1) == ["rebuild"]
        records: list[Any] = [["key", d, 1, _fields(config)] for d, config in keys.items()]
        records += [["ten", name, 1, _fields(config)] for name, config in TENANTS.items()]
        assert self.run("conf", "e1", json.dumps(records)) == ["e1", 7]
        assert self.run("conf", "e2", json.dumps(records)) == ["e1", 0]
        for ingress in INGRESSES:
            self.beat(ingress, 100_000_000)
        self.cap("r1", "ready", 1000, 0, 3, 300_000_000)

    def run(self, name: str, *args: str | int) -> Any:
        stable = [PREFIX + key for key in STABLE_KEYS]
        tail = (len(stable), *stable, self.oracle.now, *args)
        script = scripts()[name]
        try:
            return self.redis.execute_command("EVALSHA", script.sha, *tail)  # type: ignore[no-untyped-call]
        except redis.exceptions.NoScriptError:
            return self.redis.execute_command("EVAL", script.text, *tail)  # type: ignore[no-untyped-call]

    def record(self, key: str) -> dict[str, Any]:
        packed: Any = self.raw.get(PREFIX + key)
        found: dict[str, Any] = msgspec.msgpack.decode(packed) if packed else {}
        return found

    def pick(self, data: st.DataObject, states: str) -> str:
        known = [rid for rid, r in self.oracle.requests.items() if r.state in states]
        return data.draw(st.sampled_from(known), "rid")

    # ---- steps ----

    @rule(step=MOMENTS)
    def wait(self, step: int) -> None:
        self.oracle.now += step

    @rule(
        ingress=st.sampled_from(INGRESSES),
        digest=st.sampled_from(DIGESTS),
        wishes=st.lists(st.tuples(TOKENS, OUTPUTS), min_size=1, max_size=7),
        patience=st.sampled_from((0, 500_000, 60_000_000, 60_000_000)),
        bound=st.sampled_from((2, 100, 100)),
    )
    def admit(
        self,
        ingress: str,
        digest: str,
        wishes: list[tuple[int, int]],
        patience: int,
        bound: int,
    ) -> None:
        for prompt, most in wishes:
            rid = f"q{next(self.numbers)}"
            numbers = (prompt, most, patience, 5_000_000, 40_000_000, bound)
            before = self.oracle.pool["running"]
            reply = self.run("admit", digest, rid, ingress, *numbers)
            assert reply == self.oracle.admit(digest, rid, ingress, numbers)
            if reply[0] in ("run", "wait"):
                self.starts.setdefault(digest, []).append(self.oracle.now)
            if self.oracle.pool["running"] > before:
                self.nothing_is_promised_twice()

    @precondition(lambda self: self.oracle.requests)
    @rule(data=st.data())
    def admit_again(self, data: st.DataObject) -> None:
        rid = self.pick(data, "qr")
        r = self.oracle.requests[rid]
        before = self.dump()
        reply = self.run("admit", r.digest, rid, r.ingress, 1, 1, 1, 1, 1, 1)
        assert reply[0] == {"q": "wait", "r": "run"}[r.state]
        assert reply[0] == "wait" or reply[1] == r.fence
        assert self.dump() == before

    @precondition(lambda self: self.oracle.pool["running"])
    @rule(
        data=st.data(),
        how=st.sampled_from(("ok", "ok", "ok", "abort", "error")),
        used=TOKENS,
        cached=st.integers(0, 10),
        output=st.integers(0, 500),
    )
    def settle(self, data: st.DataObject, how: str, used: int, cached: int, output: int) -> None:
        rid, counts = self.pick(data, "r"), (used + cached, cached, output)
        assert self.run("settle", rid, how, *counts) == self.oracle.settle(rid, how, counts)
        before = self.dump()
        assert self.run("settle", rid, how, *counts) == 0
        assert self.dump() == before

    @precondition(lambda self: self.oracle.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        rid = self.pick(data, "qr")
        assert self.run("cancel", rid, "never-seen") == self.oracle.cancel(rid)

    @rule(
        ingress=st.sampled_from(INGRESSES),
        lease=st.sampled_from((100_000_000, 100_000_000, 1_000_000)),
    )
    def beat(self, ingress: str, lease: int) -> None:
        rids = list(self.oracle.requests)[:3]
        reply = self.run("beat", ingress, lease, *rids, "never-seen")
        self.oracle.leases[ingress] = self.oracle.now + lease
        owned = sum(r.ingress == ingress for r in self.oracle.requests.values())
        states: list[Any] = ["e1", owned]
        for rid in rids:
            r = self.oracle.requests[rid]
            states += ["run" if r.state == "r" else "wait", r.fence, r.replica]
        assert reply == [*states, "gone", 0, ""]

    @rule(
        name=st.sampled_from(REPLICAS),
        state=st.sampled_from(("ready",) * 6 + ("draining", "stopped")),
        total=st.sampled_from((150, 400, 1000)),
        used=st.integers(0, 400),
        slots=st.integers(1, 4),
        ttl=st.sampled_from((300_000_000, 300_000_000, 2_000_000)),
    )
    def cap(self, name: str, state: str, total: int, used: int, slots: int, ttl: int) -> None:
        free = max(0, total - used)
        args = (total, free, total - free, 0, 0, slots, 1, "inc", "{}")
        waiting = self.run("cap", name, ttl, state, *args)
        self.oracle.cap(name, state, (ttl, total, free, slots))
        assert waiting == self.oracle.pool["waiting"]

    @rule()
    def tick(self) -> None:
        assert self.run("tick", 0) == 1
        self.oracle.tick()

    @rule(digest=st.sampled_from(("five", "tokens")), really=st.integers(0, 9))
    def revoke(self, digest: str, really: int) -> None:
        if really == 7:
            config = self.oracle.keys[digest]
            config.active = False
            self.run("conf", "e3", json.dumps([["key", digest, 2, _fields(config)]]))

    # ---- what must hold after each ----

    @invariant()
    def redis_holds_what_the_oracle_holds(self) -> None:
        held = self.read_all()
        self.compare_pool(held)
        self.compare_meters(held)
        self.compare_sets(held)
        self.compare_news(held)

    def read_all(self) -> dict[str, Any]:
        """One round trip; records are decoded, ingresses' lists emptied."""
        oracle, pipe = self.oracle, self.raw.pipeline(transaction=False)
        records = [
            "pool",
            *(f"mt:{n}" for n in oracle.meters),
            *(f"req:{r}" for r in oracle.requests),
        ]
        names: list[str] = [*records, "req:*", "vt", "vth"]
        for name in records:
            pipe.get(PREFIX + name)
        pipe.keys(PREFIX + "req:*")
        pipe.zrange(PREFIX + "vt:default", 0, -1, withscores=True)
        pipe.hgetall(PREFIX + "vth")
        for config in oracle.keys.values():
            names.append(f"cl:k:{config.id}")
            pipe.scard(PREFIX + names[-1])
        for tenant in TENANT_NAMES:
            names.append(f"q:{tenant}")
            pipe.zrange(f"{PREFIX}q:default:{tenant}", 0, -1)
        for ingress in INGRESSES:
            names += [f"gr:{ingress}", ""]
            pipe.lrange(f"{PREFIX}gr:{ingress}", 0, -1)
            pipe.delete(f"{PREFIX}gr:{ingress}")
        held = dict(zip(names, pipe.execute(), strict=True))
        for name in records:
            held[name] = msgspec.msgpack.decode(held[name]) if held[name] else {}
        return held

    def compare_pool(self, held: dict[str, Any]) -> None:
        pool, requests = held["pool"], self.oracle.requests
        assert {f: pool.get(f, 0) for f in POOL} == {f: self.oracle.pool[f] for f in POOL}
        for rid, r in requests.items():
            record = held[f"req:{rid}"]
            assert record == {field: getattr(r, field) for field in record}
        running = [held[f"req:{rid}"] for rid, r in requests.items() if r.state == "r"]
        assert sum(r["kv"] for r in running) == pool.get("committed", 0)
        assert len(running) == pool.get("running", 0)
        assert len(held["req:*"]) == len(requests)
        gone = pool.get("nset", 0) + pool.get("ncan", 0)
        assert pool.get("nadm", 0) == gone + len(requests)

    def compare_meters(self, held: dict[str, Any]) -> None:
        for name, expected in self.oracle.meters.items():
            meter = held[f"mt:{name}"]
            for field in ("ew", "ewn", "ewd", "nreq", "nin", "ncached", "nout"):
                assert meter.get(field, 0) == expected[field]
            for debt, limit in zip("rtio", self._config(name).limits, strict=True):
                worked_off = (self.oracle.now - meter.get("at", 0)) * limit
                expected_off = (self.oracle.now - expected["at"]) * limit
                left = max(0, meter.get(debt, 0) - worked_off)
                assert left == max(0, expected[debt] - expected_off)

    def compare_sets(self, held: dict[str, Any]) -> None:
        oracle = self.oracle
        for config in oracle.keys.values():
            count = held[f"cl:k:{config.id}"]
            assert count == oracle.in_flight(f"k:{config.id}")
            assert not config.conc or count <= config.conc
        for tenant in TENANT_NAMES:
            assert [rid.decode() for rid in held[f"q:{tenant}"]] == oracle.queues[tenant]
        assert {t.decode(): int(time) for t, time in held["vt"]} == oracle.active()
        times = {t.decode(): int(time) for t, time in held["vth"].items() if int(time)}
        assert times == {t: time for t, time in oracle.vth.items() if time}

    def compare_news(self, held: dict[str, Any]) -> None:
        for ingress in INGRESSES:
            news = [line.decode() for line in held[f"gr:{ingress}"]]
            expected = self.oracle.told.pop(ingress, [])
            assert Counter(news) == Counter(expected)
            granted = [line for line in news if line.startswith("g")]
            assert granted == [line for line in expected if line.startswith("g")]

    @invariant()
    def five_a_minute_is_five_in_any_burst(self) -> None:
        times = self.starts.get("five", [])
        for i, first in enumerate(times):
            for j in range(i, len(times)):
                assert (j - i + 1) * 60_000_000 <= 5 * (60_000_000 + times[j] - first)

    def nothing_is_promised_twice(self) -> None:
        pool = self.record("pool")
        assert pool["committed"] <= pool["ktot"]
        assert pool["running"] <= pool["maxrun"]

    def _config(self, name: str) -> Config:
        if name.startswith("t:"):
            return TENANTS.get(name[2:], Config())
        return next(c for c in self.oracle.keys.values() if f"k:{c.id}" == name)

    def dump(self) -> dict[str, Any]:
        keys: Any = self.raw.keys("*")
        return {key: self.raw.dump(key) for key in keys}

    def teardown(self) -> None:
        """After everybody has gone nothing is held by anybody."""
        if self.oracle.now:
            for rid in list(self.oracle.requests):
                self.settle_quietly(rid)
            pool = self.record("pool")
            assert not any(pool.get(f) for f in ("running", "waiting", "committed", "wneed"))
            keys: Any = self.redis.keys("*")
            left = {key.removeprefix(PREFIX).partition(":")[0] for key in keys}
            kept = {"pool", "key", "ten", "mt", "ls", "rep", "room", "led", "aud", "gr"}
            assert left <= kept
            entries: Any = self.redis.xrange(PREFIX + "led")
            written = [(e["rid"], e["how"], int(e["in"]), int(e["out"])) for _, e in entries]
            assert Counter(written) == Counter(self.oracle.ledger)
        self.redis.close()
        self.raw.close()

    def settle_quietly(self, rid: str) -> None:
        self.run("settle", rid, "ok", 1, 0, 1)
        self.oracle.settle(rid, "ok", (1, 0, 1))


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("machine")) as server:
        yield server


def test_scripts_do_what_the_oracle_does(own_server: RedisServer) -> None:
    Machine.url = own_server.url
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
