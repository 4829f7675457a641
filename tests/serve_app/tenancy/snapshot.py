"""One instant of a pool, as the oracle has it and as Redis does: two equal dictionaries."""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from tests.serve_app.tenancy.oracle import CLASSES, DEBTS, RANKS, Config, Oracle, Request
from tests.serve_app.tenancy.promises import LAPSE

OWN = {
    *("gb", "g0", "g1", "g2", "g3", "arr", "tick", "epoch", "block", "conf", "nconf"),
    *("due", "gone", "paid", "rest"),
}
"""Fields of the pool's record that the oracle keeps otherwise, or not at all."""
LEARNED = ("ew", "ewn", "ewd", "nreq", "nin", "ncached", "nout", "again")
BUDGETED = {"day tokens": "dsp", "day money": "dmo", "month tokens": "msp", "month money": "mmo"}


def expected(oracle: Oracle) -> dict[str, Any]:
    """What Redis must hold; the oracle's news are taken away."""
    told, oracle.told = oracle.told, defaultdict(list)
    return {
        "pool": _pool(oracle),
        "requests": {rid: _stored(r) for rid, r in oracle.requests.items()},
        "meters": {name: m for name in oracle.meters if (m := _meter(oracle, name))},
        "in flight": _sums(oracle, lambda r: f"k:{r.key}", lambda _: 1)
        | _sums(oracle, lambda r: f"t:{r.tenant}", lambda _: 1),
        "owned": _sums(oracle, lambda r: r.ingress, lambda _: 1),
        "waiting": _sums(
            oracle, lambda r: f"{CLASSES[r.rank - 1]}:{r.tenant}", lambda r: r.kv, states="q"
        )
        | {f"w:{CLASSES[rank - 1]}:{name}": w for (rank, name), w in oracle.weights.items()},
        "deadlines": {rid: r.deadline for rid, r in oracle.requests.items() if r.state == "q"},
        "ends": {rid: r.beg + r.mx for rid, r in oracle.requests.items() if r.state == "r"},
        "room": {name: r.room for name, r in oracle.replicas.items() if r.room is not None},
        "queues": {
            f"{CLASSES[rank - 1]}:{tenant}": list(queue)
            for (rank, tenant), queue in oracle.queues.items()
            if queue
        },
        "turns": {CLASSES[rank - 1]: times for rank in RANKS if (times := oracle.active(rank))},
        "times": {
            f"{CLASSES[rank - 1]}:{tenant}": time
            for (rank, tenant), time in oracle.vth.items()
            if time
        },
        "lines": {
            f"{CLASSES[rank - 1]}:{tenant}": (line.last, line.owed, line.out, line.show, line.slow)
            for (rank, tenant), line in oracle.promises.lines.items()
        },
        "promises": {
            mark: live
            for mark, dues in oracle.promises.dues.items()
            if (live := sorted(due for due in dues if due + LAPSE > oracle.now))
        },
        "news": {ingress: Counter(lines) for ingress, lines in told.items() if lines},
        "grants": {
            ingress: grants for ingress, lines in told.items() if (grants := _grants(lines))
        },
    }


def held(
    state: dict[str, Any], oracle_at: int, limits: dict[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The same of what Redis holds at the time `oracle_at`."""
    kinds = ("req", "mt", "in", "q", "vt", "gr", "back")
    names = {kind: _named(state, kind) for kind in kinds}
    pool = {f: int(v) for f, v in _pairs(state["pool"]).items() if f not in OWN and v != "0"}
    return {
        "pool": pool,
        "requests": {rid: _pairs(flat) for rid, flat in names["req"].items()},
        "meters": {
            name: meter
            for name, flat in names["mt"].items()
            if (meter := _held_meter(_pairs(flat), oracle_at, limits[name]))
        },
        "in flight": {
            name: n for name, m in names["mt"].items() if (n := int(_pairs(m).get("n", 0)))
        },
        "owned": {name: len(rids) for name, rids in names["in"].items()},
        "waiting": _times(state.get("wn", [])),
        "deadlines": _times(state.get("dl", [])),
        "ends": _times(state.get("mx", [])),
        "room": _times(state.get("room", [])),
        "queues": {name: flat[::2] for name, flat in names["q"].items()},
        "turns": {name: _times(flat) for name, flat in names["vt"].items()},
        "times": _held_times(_pairs(state["pool"])["rest"], names["mt"]),
        "lines": {name: _line(flat) for name, flat in _pairs(state.get("pr", [])).items()},
        "promises": {
            mark: live
            for mark, dues in names["back"].items()
            if (live := sorted(due for due in _times(dues).values() if due + LAPSE > oracle_at))
        },
        "news": {ingress: Counter(lines) for ingress, lines in names["gr"].items()},
        "grants": {
            ingress: grants for ingress, lines in names["gr"].items() if (grants := _grants(lines))
        },
    }


def limits_of(keys: dict[str, Config], tenants: dict[str, Config]) -> dict[str, tuple[int, ...]]:
    """The four rates of every meter."""
    limits: dict[str, tuple[int, ...]] = {f"k:{c.id}": c.limits for c in keys.values()}
    owners = {config.tenant for config in keys.values()}
    return limits | {f"t:{name}": tenants.get(name, Config()).limits for name in owners}


def _line(flat: Any) -> tuple[int, ...]:
    line = _pairs(flat)
    return tuple(int(line[field]) for field in ("last", "owed", "out", "show", "slow"))


def _pool(oracle: Oracle) -> dict[str, int]:
    fields = {field: value for field, value in oracle.pool.items() if value}
    fields["prom"] = oracle.promises.latest
    for rank in RANKS:
        waiters = oracle.waiters(rank)
        fields |= {
            f"w{rank}": len(waiters),
            f"n{rank}": sum(r.kv for r in waiters),
            f"k{rank}": oracle.held(rank),
            f"v{rank}": oracle.clock[rank],
            f"s{rank}": oracle.turned[rank],
            f"h{rank}": sum(w for (its, _), w in oracle.weights.items() if its == rank),
        }
    return {field: value for field, value in fields.items() if value}


def _stored(request: Request) -> dict[str, str]:
    return {f: str(v) for f, v in vars(request).items() if f != "deadline"}


def _meter(oracle: Oracle, name: str) -> dict[str, int]:
    meter, config = oracle.meters[name], oracle.config_of(name)
    idle = oracle.now - meter["at"]
    fields = {field: meter[field] for field in LEARNED}
    for debt, limit in zip(DEBTS, config.limits, strict=True):
        fields[debt] = max(0, meter[debt] - idle * limit)
    for (scope, kind, _), taken in oracle.spent.items():
        if scope == name:
            fields[BUDGETED[kind]] = taken
    return {field: value for field, value in fields.items() if value}


def _held_meter(meter: dict[str, str], now: int, limits: tuple[int, ...]) -> dict[str, int]:
    idle = now - int(meter["at"])
    fields = {field: int(meter.get(field, 0)) for field in (*LEARNED, *BUDGETED.values())}
    for debt, limit in zip(DEBTS, limits, strict=True):
        fields[debt] = max(0, int(meter.get(debt, 0)) - idle * limit)
    return {field: value for field, value in fields.items() if value}


def _held_times(rest: str, meters: dict[str, Any]) -> dict[str, int]:
    """By class and tenant: those of meter records written since the pool came to rest last."""
    times: dict[str, int] = {}
    for name, flat in meters.items():
        meter = _pairs(flat)
        if meter["rest"] == rest:
            times |= {f"{CLASSES[rank - 1]}:{name[2:]}": int(meter[f"t{rank}"]) for rank in RANKS}
    return {name: time for name, time in times.items() if time}


def _sums(
    oracle: Oracle,
    name: Callable[[Request], str],
    value: Callable[[Request], int],
    states: str = "qr",
) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for r in oracle.requests.values():
        if r.state in states:
            sums[name(r)] += value(r)
    return dict(sums)


def _grants(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("g")]


def _named(state: dict[str, Any], kind: str) -> dict[str, Any]:
    return {n.removeprefix(f"{kind}:"): v for n, v in state.items() if n.startswith(f"{kind}:")}


def _pairs(flat: list[Any]) -> dict[str, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _times(flat: list[str]) -> dict[str, int]:
    return {name: int(time) for name, time in _pairs(flat).items()}
