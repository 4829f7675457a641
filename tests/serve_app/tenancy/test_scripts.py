"""The scripts against the oracle: random steps on a real Redis and on the model, and the invariants
that both must keep."""

import dataclasses
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
from tests.serve_app.tenancy import snapshot
from tests.serve_app.tenancy.invariants import Invariants, WatchedOracle
from tests.serve_app.tenancy.oracle import CLASSES, RANKS, Config, Request, Rule, Sending
from tests.serve_app.tenancy.tape import PREFIX, Check, Tape, load_scripts

EPOCH_US = (1_764_547_200 - 40) * 1_000_000
"""A day and a month end 40 s after it."""
KEYS = {
    "free": Config("k-free", "acme"),
    "five": Config("k-five", "acme", limits=(5, 0, 0, 0)),
    "tokens": Config("k-tokens", "bolt", limits=(0, 700, 0, 0), conc=3),
    "odd": Config("k-odd", "bolt", limits=(7, 0, 999, 333), budgets=(900, 1500), burst=30),
    "paying": Config("k-paying", "coal", money=(1_500, 0)),
    "dying": Config(
        "k-dying", "coal", conc=2, expires=EPOCH_US // 1_000_000 + 30, ceiling="system"
    ),
}
TENANTS = {
    "acme": Config(limits=(40, 5000, 0, 0), budgets=(0, 4000), conc=6),
    "bolt": Config(weight=3, ceiling="default"),
    "coal": Config(money=(0, 4_000)),
}
RULES = {
    1: Rule(share=5, age=500_000, patience=30_000_000),
    2: Rule(share=10, age=500_000, patience=30_000_000),
    3: Rule(share=30, ceiling=90, age=2_000_000),
    4: Rule(ceiling=60, age=8_000_000),
}
RESERVE = (90, 170)
LIMITS = snapshot.limits_of(KEYS, TENANTS)
INGRESSES = ("i1", "i2")
REPLICAS = ("r1", "r2")
DIGESTS = (*KEYS, "unknown", "free", "five", "tokens", "odd", "paying")
PRICES = ("USD 550000 140000 2190000", "USD 10000000 1 333333", "")
SENDINGS = [Sending(), *(Sending(mark, n) for mark in ("m1", "m2") for n in (-1, 0, 1, 1))]
TOKENS, OUTPUTS = st.integers(0, 120), st.integers(1, 300)
ANY = st.integers(0, 1000)
MOMENTS = st.sampled_from((100_000, 1, 1_000_000, 250_000, 3_000_000, 11_999_999, 31_000_000))
COMPARED_EVERY = 5
"""Steps after which everything in Redis is compared; replies are, each time."""


def _fields(config: Config) -> dict[str, Any]:
    names = ("rpm", "tpm", "itpm", "otpm")
    return dict(zip(names, config.limits, strict=True)) | {
        "daytok": config.budgets[0],
        "montok": config.budgets[1],
        "daymoney": config.money[0],
        "monmoney": config.money[1],
        "conc": config.conc,
        "burst": config.burst,
        "weight": config.weight,
        "id": config.id,
        "ten": config.tenant,
        "status": "active" if config.active else "revoked",
        "expires": config.expires,
        "print": f"{config.active}",
        "op": "",
        "by": "",
        "at": 0,
        "version": 0,
        "class": config.ceiling,
    }


def says(expected: Any) -> Check:
    """Checks that a reply is `expected`."""

    def check(reply: Any) -> None:
        assert reply == expected

    return check


class Machine(RuleBasedStateMachine):
    """Every rule does a step on the oracle, and writes it down for Redis with the right answer."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.tape = Tape(self.client)
        self.numbers = itertools.count()
        self.steps = itertools.count(1)
        self.key_changes = 0
        self.preempted: Counter[str] = Counter()
        keys = {digest: Config(**vars(config)) for digest, config in KEYS.items()}
        self.oracle = WatchedOracle(keys, TENANTS)
        self.kept = Invariants(self.oracle)

    @initialize(ruled=st.booleans())
    def empty(self, ruled: bool) -> None:
        self.tape.command("FLUSHALL")
        self.oracle.now = EPOCH_US
        if ruled:
            self.oracle.rules = RULES
            self.oracle.reserve = RESERVE
            rules = [*(dataclasses.astuple(RULES[rank]) for rank in RANKS), RESERVE]
            self.tape.command("SET", PREFIX + "rules", msgspec.msgpack.encode(rules))
        self.run(["rebuild"], "admit", "free", "r", "i1", 1, 1, 1, 1, 1, 1, "", "m", "", "", -1)
        records: list[Any] = [["key", d, _fields(config)] for d, config in KEYS.items()]
        records += [["ten", name, _fields(config)] for name, config in TENANTS.items()]
        self.key_changes = 1
        self.run(["e1", len(records), 1], "conf", "e1", 1, json.dumps(records))
        self.run(["e1", 0, 1], "conf", "e2", 1, json.dumps(records))
        for ingress in INGRESSES:
            self.beat(ingress, 100_000_000)
        self.cap("r1", "ready", 1000, 0, 3, 300_000_000, 0)

    def run(self, expected: Any, name: str, *args: str | int) -> None:
        self.tape.script(self.oracle.now, name, *args, check=says(expected))

    def pick(self, place: int, states: str) -> tuple[str, Request]:
        """One of the requests in one of the `states`."""
        known = [(rid, r) for rid, r in self.oracle.requests.items() if r.state in states]
        return known[place % len(known)]

    # ---- steps ----

    @rule(step=MOMENTS)
    def wait(self, step: int) -> None:
        self.oracle.remaining.clear()
        self.oracle.now += step

    @rule(
        ingress=st.sampled_from(INGRESSES),
        digest=st.sampled_from(DIGESTS),
        prompt=TOKENS,
        most=OUTPUTS,
        count=st.sampled_from((1, 1, 2, 7)),
        patience=st.sampled_from((0, 500_000, 60_000_000, 60_000_000)),
        bound=st.sampled_from((2, 100, 100)),
        price=st.sampled_from(PRICES),
        asked=st.sampled_from(("", "", "", *CLASSES)),
        sending=st.sampled_from(SENDINGS),
    )
    def admit(
        self,
        ingress: str,
        digest: str,
        prompt: int,
        most: int,
        count: int,
        patience: int,
        bound: int,
        price: str,
        asked: str,
        sending: Sending,
    ) -> None:
        for number in range(count):
            size = (prompt * (number + 1) % 121, most * (number + 1) % 301 + 1)
            numbers = (*size, patience, 5_000_000, 40_000_000, bound)
            reply = self.ask(ingress, digest, numbers, asked, price, sending)
            if reply[0] == "limit" and reply[1] != "concurrency":
                self.come_back(reply[3], ingress, digest, numbers, asked, price, sending)

    def ask(
        self,
        ingress: str,
        digest: str,
        numbers: tuple[int, ...],
        asked: str,
        price: str,
        sending: Sending,
    ) -> list[Any]:
        rid = f"q{next(self.numbers)}"
        before = self.oracle.pool["running"]
        reply = self.oracle.admit(digest, rid, ingress, numbers, asked, price, sending)
        self.run(reply, "admit", digest, rid, ingress, *numbers, asked, "m", price, *sending)
        self.kept.admitted(digest, rid, reply)
        if self.oracle.pool["running"] > before:
            self.kept.hold_after_a_start()
        return reply

    def come_back(self, wait_us: int, ingress: str, digest: str, *wishes: Any) -> None:
        """I10: after exactly the wait that a rate's refusal told, no rate refuses. Nobody dies
        meanwhile: what the dead have used beyond their reservation is charged then."""
        self.wait(wait_us)
        for alive in INGRESSES:
            self.beat(alive, 100_000_000)
        reply = self.ask(ingress, digest, *wishes)
        assert reply[0] != "limit" or reply[1] == "concurrency", "I10"

    @precondition(lambda self: self.oracle.requests)
    @rule(place=ANY)
    def admit_again(self, place: int) -> None:
        """I5: nothing changes."""
        rid, r = self.pick(place, "qr")

        def same(reply: list[Any]) -> None:
            assert reply[0] == {"q": "wait", "r": "run"}[state]
            assert state == "q" or reply[1] == fence

        state, fence = r.state, r.fence
        args = (r.digest, rid, r.ingress, 1, 1, 1, 1, 1, 1, "", "m", "", "", -1)
        with self.tape.nothing_changes():
            self.tape.script(self.oracle.now, "admit", *args, check=same)

    @precondition(lambda self: self.oracle.pool["running"])
    @rule(
        place=ANY,
        how=st.sampled_from(("ok", "ok", "ok", "abort", "error")),
        used=TOKENS,
        cached=st.integers(0, 10),
        output=st.integers(0, 500),
    )
    def settle(self, place: int, how: str, used: int, cached: int, output: int) -> None:
        rid, _ = self.pick(place, "r")
        counts = (used + cached, cached, output)
        args = ("settle", rid, how, *counts, min(output, 3))
        self.run(self.oracle.settle(rid, how, counts), *args)
        self.kept.hold_after_a_grant()
        with self.tape.nothing_changes():
            self.run(0, *args)

    @precondition(lambda self: self.oracle.pool["running"])
    @rule(place=ANY, output=st.integers(0, 400))
    def see(self, place: int, output: int) -> None:
        rid, r = self.pick(place, "r")
        self.oracle.see(rid, output)
        self.run(1, "seen", r.ingress, rid, output, "never-seen", 7)

    @precondition(lambda self: self.oracle.requests)
    @rule(place=ANY)
    def cancel(self, place: int) -> None:
        rid, _ = self.pick(place, "qr")
        self.run(self.oracle.cancel(rid), "cancel", rid, "never-seen")
        self.kept.hold_after_a_grant()
        with self.tape.nothing_changes():
            self.run(0, "cancel", rid)

    @rule(
        ingress=st.sampled_from(INGRESSES),
        lease=st.sampled_from((100_000_000, 100_000_000, 1_000_000)),
    )
    def beat(self, ingress: str, lease: int) -> None:
        rids = list(self.oracle.requests)[:3]
        self.oracle.leases[ingress] = self.oracle.now + lease
        owned = sum(r.ingress == ingress for r in self.oracle.requests.values())
        states: list[Any] = ["e1", self.key_changes, owned]
        for rid in rids:
            r = self.oracle.requests[rid]
            states += ["run" if r.state == "r" else "wait", r.fence, r.replica, r.kv]
        self.run([*states, "gone", 0, "", 0], "beat", ingress, lease, *rids, "never-seen")

    @rule(
        name=st.sampled_from(REPLICAS),
        state=st.sampled_from(("ready",) * 6 + ("draining", "stopped")),
        total=st.sampled_from((150, 400, 1000)),
        used=st.integers(0, 400),
        slots=st.integers(1, 4),
        ttl=st.sampled_from((300_000_000, 300_000_000, 2_000_000)),
        preempted=st.sampled_from((0, 0, 1)),
    )
    def cap(
        self, name: str, state: str, total: int, used: int, slots: int, ttl: int, preempted: int
    ) -> None:
        free = max(0, total - used)
        self.preempted[name] += preempted
        self.oracle.cap(name, state, (ttl, total, free, slots, self.preempted[name]))
        args = (total, free, total - free, 0, 0, slots, 1, self.preempted[name], "inc", "{}")
        self.run(self.oracle.pool["waiting"], "cap", name, ttl, state, *args)
        self.kept.hold_after_a_grant()

    @rule()
    def tick(self) -> None:
        self.oracle.tick()
        self.run(1, "tick", 0)
        self.kept.hold_after_a_grant()

    @rule(digest=st.sampled_from(("five", "tokens")), really=st.integers(0, 9))
    def revoke(self, digest: str, really: int) -> None:
        config = self.oracle.keys[digest]
        if really == 7:
            changed, config.active = int(config.active), False
            self.key_changes += changed
            records = json.dumps([["key", digest, _fields(config)]])
            self.run(["e1", changed, 2], "conf", "", 2, records)

    # ---- what must hold after each ----

    @invariant()
    def both_keep_the_invariants(self) -> None:
        self.kept.hold()
        if next(self.steps) % COMPARED_EVERY == 0:
            self.compare()

    def compare(self) -> None:
        """Redis holds what the oracle holds."""
        expected, now = snapshot.expected(self.oracle), self.oracle.now

        def check(state: dict[str, Any]) -> None:
            held = snapshot.held(state, now, LIMITS)
            for part, value in expected.items():
                assert held[part] == value, part

        self.tape.state(check)

    def teardown(self) -> None:
        """I3: after everybody has gone nothing is held by anybody; each has one ledger entry."""
        if not self.oracle.now:
            return
        self.compare()
        for rid in list(self.oracle.requests):
            self.run(self.oracle.settle(rid, "ok", (1, 0, 1)), "settle", rid, "ok", 1, 0, 1, 0)
        self.compare()
        self.tape.state(_nothing_is_held)
        self.tape.command("KEYS", "*", check=_nothing_is_left)
        ledger = Counter(self.oracle.ledger)
        self.tape.command(
            "XRANGE", PREFIX + "led", "-", "+", check=lambda rows: says(ledger)(_ledger(rows))
        )
        self.tape.play()


def _nothing_is_held(state: dict[str, Any]) -> None:
    pool = dict(zip(state["pool"][::2], state["pool"][1::2], strict=True))
    promised = ("running", "waiting", "committed", "wneed")
    assert not any(int(pool.get(field, 0)) for field in promised)


def _nothing_is_left(keys: list[str]) -> None:
    left = {key.removeprefix(PREFIX).partition(":")[0] for key in keys}
    kept = {"pool", "rules", "key", "ten", "mt", "ls", "rep", "room", "led", "aud", "gr", "known"}
    assert left <= kept | {"paid", "pr", "back"}  # for a day; while promises are out


def _ledger(rows: Any) -> Counter[tuple[Any, ...]]:
    return Counter(
        (e["rid"], e["how"], int(e["in"]), int(e["out"]), int(e["cost"])) for _, e in rows
    )


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with RedisServer(tmp_path_factory.mktemp("machine")) as server:
        path = server.url.removeprefix("unix://")
        with redis.Redis(unix_socket_path=path, decode_responses=True) as client:
            load_scripts(client)
            yield client


@pytest.mark.timeout(600)
def test_scripts_do_what_the_oracle_does_and_both_keep_the_invariants(client: redis.Redis) -> None:
    Machine.client = client
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=2000,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
