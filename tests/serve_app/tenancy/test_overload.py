"""What lasting overload is like for those who are refused, in the simulated pool.

The rule that tells everybody the same time fails the same question.
"""

import statistics
from collections.abc import Iterator

import pytest
import redis

from serve_app.tenancy.redis_server import RedisServer
from tests.serve_app.tenancy.simulation import SECOND, Simulation, Tenant

SLOTS, SERVED_A_SECOND = 10, 12.5
LENGTHS = ((10, 50), (20, 60))
"""Of prompts and outputs: short jobs, of 0.8 s in the mean."""
THINK_S = 15.0
OVERLOADS = (1.4, 2.0)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with RedisServer(tmp_path_factory.mktemp("simulation")) as server:
        path = server.url.removeprefix("unix://")
        with redis.Redis(unix_socket_path=path, decode_responses=True) as client:
            yield client


def the_same_for_all(text: str) -> str:
    """Nobody is promised anything: all stay away until the queue would be short enough for them."""
    old = "  line = line or line_of(r.rank, r.tenant)\n"
    told = "  do return math.max(1000, math.ceil(lead / 1000)) end\n"
    return text.replace(old, told + old)


def passers_by(overload: float, patience_s: int) -> Tenant:
    """So many requests a second; less than half of the refused come back."""
    return Tenant(
        "open",
        *LENGTHS,
        most=60,
        rate=overload * SERVED_A_SECOND,
        returns=0.4,
        patience_us=patience_s * SECOND,
    )


def regulars(overload: float, patience_s: int, name: str = "closed") -> Tenant:
    """People who all come back until they are served."""
    people = round(overload * SERVED_A_SECOND * (THINK_S + SLOTS / SERVED_A_SECOND))
    return Tenant(
        name,
        *LENGTHS,
        most=60,
        people=people,
        think_s=THINK_S,
        returns=1.0,
        patience_us=patience_s * SECOND,
    )


def served_as_told(tenant: Tenant) -> float:
    """Of those who came back when they were told to."""
    assert len(tenant.told_us) > 100
    return tenant.let_in / len(tenant.told_us)


def error_of_predictions(tenant: Tenant) -> float:
    """Of waits, as a part of the real one, at p50."""
    pairs = zip(tenant.etas_us, tenant.waits_us, strict=True)
    return statistics.median(abs(eta - wait) / wait for eta, wait in pairs if eta > 0)


@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize(("bound", "patience_s"), [(10_000, 10), (40, 600)])
def test_passers_by_who_come_back_as_told_are_served(
    client: redis.Redis, overload: float, bound: int, patience_s: int
) -> None:
    crowd = passers_by(overload, patience_s)
    pool = Simulation(client, [crowd], kv=10**6, slots=SLOTS, bound=bound)
    pool.run(120, warm_up_s=40)
    assert served_as_told(crowd) >= 0.9
    assert statistics.mean(pool.busy) >= 0.95
    assert error_of_predictions(crowd) <= 0.35


@pytest.mark.parametrize("overload", OVERLOADS)
def test_told_the_same_time_they_are_not(client: redis.Redis, overload: float) -> None:
    crowd = passers_by(overload, 10)
    pool = Simulation(client, [crowd], kv=10**6, slots=SLOTS, alter=the_same_for_all)
    pool.run(120, warm_up_s=40)
    assert served_as_told(crowd) < 0.7


@pytest.mark.parametrize(("bound", "patience_s"), [(10_000, 5), (40, 600)])
def test_regulars_at_twice_what_there_is_room_for_are_served_when_they_come_back(
    client: redis.Redis, bound: int, patience_s: int
) -> None:
    crowd = regulars(2.0, patience_s)
    pool = Simulation(client, [crowd], kv=10**6, slots=SLOTS, bound=bound)
    pool.run(150, warm_up_s=50)
    assert served_as_told(crowd) >= 0.9
    assert statistics.mean(pool.busy) >= 0.95
    assert max(crowd.told_us) < 60 * SECOND


def test_who_does_not_listen_gains_nothing_and_takes_nothing_from_who_does(
    client: redis.Redis,
) -> None:
    polite, deaf = regulars(1.0, 5, "polite"), regulars(1.0, 5, "deaf")
    deaf.deaf_us = SECOND // 2
    pool = Simulation(client, [polite, deaf], kv=10**6, slots=SLOTS)
    pool.run(120, warm_up_s=40)
    assert served_as_told(polite) >= 0.9
    assert polite.cost / (polite.cost + deaf.cost) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("overload", [2.0, 3.0])
def test_a_tenant_of_little_weight_is_served_when_it_comes_back_too(
    client: redis.Redis, overload: float
) -> None:
    heavy, light = (regulars(overload / 2, 5, name) for name in ("heavy", "light"))
    heavy.weight = 3
    pool = Simulation(client, [heavy, light], kv=10**6, slots=SLOTS)
    pool.run(150, warm_up_s=50)
    assert served_as_told(light) >= 0.9
    assert served_as_told(heavy) >= 0.9
    assert statistics.mean(pool.busy) >= 0.95
