"""I8 and I9 as properties of the model that the scripts are compared with.

Any lengths, weights and order of ends. Turns by requests instead of tokens break the first.
"""

import itertools
from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.serve_app.tenancy.oracle import Config, Oracle, Request, Rule

KV, LONGEST = 3000, 300
SECOND = 1_000_000
AGE, SERVICE = 5 * SECOND, 2 * SECOND
RULES = {
    1: Rule(share=5, age=AGE),
    2: Rule(share=10, age=AGE),
    3: Rule(share=10, age=AGE),
    4: Rule(age=AGE),
}
SIZES = st.tuples(st.integers(1, LONGEST), st.integers(1, LONGEST))
"""Prompt and output."""


class Pool:
    """An oracle with tenants that always wait, and what each was given."""

    def __init__(self, weights: dict[str, int], slots: int, oracle: type[Oracle] = Oracle) -> None:
        keys = {name: Config(name, name, ceiling="system") for name in weights}
        self.oracle = oracle(keys, {name: Config(weight=w) for name, w in weights.items()})
        self.oracle.now = SECOND
        self.oracle.leases["i"] = 2**60
        self.oracle.cap("r", "ready", (2**60, KV, KV, slots, 0))
        self.given: dict[str, Fraction] = dict.fromkeys(weights, Fraction(0))
        self._numbers = itertools.count()

    def send(self, tenant: str, size: tuple[int, int], asked: str = "") -> str:
        rid = f"q{next(self._numbers)}"
        numbers = (*size, 2**50, 0, 2**50, 10**6)
        assert self.oracle.admit(tenant, rid, "i", numbers, asked, "")[0] in ("run", "wait")
        return rid

    def running(self) -> list[str]:
        return [rid for rid, r in self.oracle.requests.items() if r.state == "r"]

    def end(self, rid: str, output: int) -> None:
        r = self.oracle.requests[rid]
        self.given[r.tenant] += cost(r, output)
        self.oracle.settle(rid, "ok", (r.input, 0, output))

    def gap(self) -> Fraction:
        """Between the two tenants: what they were given, and were charged ahead, by weight."""
        given = dict(self.given)
        for r in self.oracle.requests.values():
            given[r.tenant] += r.vc if r.state == "r" else 0
        one, other = given.values()
        return abs(one - other)


class TurnsByRequests(Oracle):
    @staticmethod
    def cost(r: Request, cached: int, counts: tuple[int, int]) -> int:
        return 10_000 // r.weight


def cost(r: Request, output: int) -> Fraction:
    """By the tenant's weight."""
    return Fraction(10 * r.input + 40 * output, r.weight)


def serve(pool: Pool, sizes: list[tuple[int, int]], ends: list[tuple[int, int]]) -> None:
    """Both wait, always; after each end the gap is within the bound of virtual token counters: what
    the longest prompt or a full cache of output costs, twice."""
    for tenant, size in zip(itertools.cycle(pool.given), sizes, strict=False):
        pool.send(tenant, size)
    for (place, percent), size in zip(ends, itertools.cycle(sizes), strict=False):
        running = pool.running()
        rid = running[place % len(running)]
        r = pool.oracle.requests[rid]
        pool.end(rid, max(1, r.most * percent // 100))
        pool.send(r.tenant, size)
        assert pool.gap() <= 2 * max(10 * LONGEST, 40 * KV) + len(ends), "I8"


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    weights=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    slots=st.integers(1, 8),
    sizes=st.lists(SIZES, min_size=24, max_size=40),
    ends=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100)), min_size=1, max_size=40),
)
def test_of_two_that_always_wait_neither_gets_far_ahead(
    weights: tuple[int, int], slots: int, sizes: list[tuple[int, int]], ends: list[tuple[int, int]]
) -> None:
    serve(Pool(dict(zip(("a", "b"), weights, strict=True)), slots), sizes, ends)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    weights=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    slots=st.integers(1, 4),
    sizes=st.lists(SIZES, min_size=16, max_size=32),
    places=st.lists(st.integers(0, 100), min_size=1, max_size=40),
)
def test_where_lengths_are_foretold_they_are_within_four_requests(
    weights: tuple[int, int], slots: int, sizes: list[tuple[int, int]], places: list[int]
) -> None:
    pool = Pool(dict(zip(("a", "b"), weights, strict=True)), slots)
    pool.oracle.pool["ewn"] = -(10**6)  # nothing is learned: reserved is what is used
    for config in pool.oracle.keys.values():
        for name in (f"k:{config.id}", f"t:{config.tenant}"):
            pool.oracle.meters[name]["ewn"] = -(10**6)
    serve(pool, sizes, [(place, 100) for place in places])
    assert pool.gap() <= 4 * 50 * LONGEST, "I8"


def test_turns_by_requests_fail_that_question() -> None:
    pool = Pool({"a": 1, "b": 1}, 2, TurnsByRequests)
    with pytest.raises(AssertionError, match="I8"):
        serve(pool, [(10, 10), (300, 300)] * 8, [(0, 100)] * 80)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    heavy=st.lists(st.tuples(SIZES, st.sampled_from(("interactive", "batch")))),
    light=SIZES,
    slots=st.integers(1, 6),
    places=st.lists(st.integers(0, 100), min_size=80, max_size=80),
    waited=st.integers(0, 2 * AGE),
)
def test_a_light_tenant_waits_for_what_runs_and_two_grants_at_most(
    heavy: list[tuple[tuple[int, int], str]],
    light: tuple[int, int],
    slots: int,
    places: list[int],
    waited: int,
) -> None:
    """One grant may be another's whose time is the same, one that of a class that is overdue."""
    pool = Pool({"heavy": 1, "light": 1}, slots)
    pool.oracle.rules = RULES
    for size, asked in [((100, 100), "interactive")] * slots + heavy:
        pool.send("heavy", size, asked)
    pool.oracle.now += waited
    before = set(pool.running())
    rid = pool.send("light", light, "interactive")
    for place in places:
        since = [other for other in pool.running() if other not in before and other != rid]
        if pool.oracle.requests[rid].state == "r":
            return
        assert len(since) <= 2, "I9"
        awaited = [other for other in pool.running() if other in before] or since
        assert awaited, "I9"
        ending = awaited[place % len(awaited)]
        before.add(ending)
        pool.end(ending, pool.oracle.requests[ending].output)
        pool.send("heavy", (200, 200), "interactive")
    pytest.fail("I9")


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    spans=st.lists(st.integers(1, SERVICE), min_size=60, max_size=60),
    slots=st.integers(1, 4),
)
def test_batch_waits_for_its_age_and_one_service_at_most(spans: list[int], slots: int) -> None:
    pool = Pool({"busy": 1, "idle": 1}, slots)
    pool.oracle.rules = RULES
    for _ in range(slots + 3):
        pool.send("busy", (10, 10), "interactive")
    rid = pool.send("idle", (10, 10), "batch")
    began = pool.oracle.now
    ends = dict.fromkeys(pool.running(), began + SERVICE)
    for span in spans:
        if pool.oracle.requests[rid].state == "r":
            break
        ending = min(ends, key=lambda other: ends[other])
        pool.oracle.now = ends.pop(ending)
        pool.end(ending, 10)
        pool.send("busy", (10, 10), "interactive")
        ends |= {new: pool.oracle.now + span for new in pool.running() if new not in ends}
    assert pool.oracle.now - began <= AGE + SERVICE, "I9"
