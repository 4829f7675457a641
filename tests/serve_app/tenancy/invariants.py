"""Invariants of admission, whatever happens: asserted on the oracle, which Redis is compared with.

Their numbers are those of the design: I1 no over-admission, I2 conservation, I4 rates, I6 order, I7
no idle capacity, I12 remaining figures. Equality with the scripts and what must hold at the end
(I3, I5) is the machine's own; fairness and waiting (I8, I9) are test_fairness_bounds.py's.
"""

from collections import defaultdict
from typing import Any

from tests.serve_app.tenancy.oracle import MINUTE, Config, Oracle


class WatchedOracle(Oracle):
    """An oracle that tells its invariants what it takes and gives back."""

    def __init__(self, keys: dict[str, Config], tenants: dict[str, Config]) -> None:
        super().__init__(keys, tenants)
        self._rates = {digest: _Rate(config) for digest, config in keys.items()}
        self.remaining: dict[str, list[int]] = {}
        """By key, what the last reply told; nothing since time passed or something ended."""
        self.ends = 0

    def take(self, digest: str, cost: tuple[int, ...]) -> None:
        super().take(digest, cost)
        self._rates[digest].took(self.now, cost)

    def release(self, rid: str, how: str, counts: tuple[int, int, int]) -> None:
        self.remaining.clear()
        self.ends += 1
        super().release(rid, how, counts)


class Invariants:
    """What one run of the machine has seen so far."""

    def __init__(self, oracle: WatchedOracle) -> None:
        self._oracle = oracle
        self._arrivals: dict[str, int] = {}
        self._ends = 0

    def admitted(self, digest: str, rid: str, reply: list[Any]) -> None:
        """After ADMIT of a new request."""
        if reply[0] not in ("run", "wait"):
            return
        self._arrivals[rid] = len(self._arrivals)
        if self._ends < self._oracle.ends:  # one that ended in the same step comes after the reply
            self._ends = self._oracle.ends
            return
        figures, told = reply[-12:], self._oracle.remaining
        remaining = [
            left for limit, left in zip(figures[::3], figures[1::3], strict=True) if limit > 0
        ]
        before = told.get(digest, remaining)
        assert all(now <= then for now, then in zip(remaining, before, strict=True)), "I12"
        told[digest] = remaining

    def hold(self) -> None:
        """After each step."""
        oracle, p = self._oracle, self._oracle.pool
        running = [r for r in oracle.requests.values() if r.state == "r"]
        assert p["committed"] == sum(r.kv for r in running), "I2"
        assert p["running"] == len(running), "I2"
        assert p["nadm"] == p["nset"] + p["ncan"] + len(oracle.requests), "I2"
        for scope, limit in self._concurrencies():
            assert oracle.in_flight(scope) <= limit, "I1"

    def hold_after_a_start(self) -> None:
        """Whenever somebody was let in."""
        p = self._oracle.pool
        assert p["committed"] <= p["ktot"], "I1"
        assert p["running"] <= p["maxrun"], "I1"

    def hold_after_a_grant(self) -> None:
        """After each script that hands out free capacity."""
        oracle = self._oracle
        waiting = [(self._arrivals[rid], r) for rid, r in oracle.requests.items() if r.state == "q"]
        for lines in oracle.told.values():
            for line in lines:
                kind, rid, *_ = line.split(" ")
                started = oracle.requests.get(rid)
                if kind == "g" and started is not None:
                    peers = (
                        arrival
                        for arrival, r in waiting
                        if (r.rank, r.tenant) == (started.rank, started.tenant)
                    )
                    assert all(arrival > self._arrivals[rid] for arrival in peers), "I6"
        if waiting:
            rank, ceiling = oracle.turn()
            active = oracle.active(rank)
            first = min((time, tenant) for tenant, time in active.items())[1]
            r = oracle.requests[oracle.queues[rank, first][0]]
            need = oracle.kv_wanted(r.digest, r.input, r.most)
            assert not oracle.fits(need, ceiling), "I7"

    def _concurrencies(self) -> list[tuple[str, int]]:
        oracle = self._oracle
        scopes = [(f"k:{config.id}", config.conc) for config in oracle.keys.values()]
        scopes += [(f"t:{name}", config.conc) for name, config in oracle.tenants.items()]
        return [(scope, limit) for scope, limit in scopes if limit]


class _Rate:
    """I4: in any window w, admitted less refunded cost <= burst + rate x w, for each meter.

    With s(t) = cost so far - rate x t that is: s after any admission never exceeds the least s
    before it by more than the burst.
    """

    def __init__(self, config: Config) -> None:
        self._limits, self._burst = config.limits, config.burst
        self._cost = [0] * 4
        self._least: dict[int, int] = defaultdict(lambda: 2**62)

    def took(self, now: int, cost: tuple[int, ...]) -> None:
        for i, limit in enumerate(self._limits):
            if limit:
                self._least[i] = min(self._least[i], self._cost[i] - limit * now)
                self._cost[i] += cost[i] * MINUTE
                if cost[0]:
                    most = limit * self._burst * 1_000_000
                    assert self._cost[i] - limit * now - self._least[i] <= most, "I4"
