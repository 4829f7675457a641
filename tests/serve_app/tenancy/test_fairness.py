"""Shares and waits of tenants side by side, in the simulated pool.

Schedulers that are not fair fail the same questions, so the questions have teeth.
"""

import re
from collections.abc import Callable, Iterator

import pytest
import redis

from serve_app.tenancy.redis_server import RedisServer
from tests.serve_app.tenancy.simulation import SECOND, Simulation, Tenant

KV = 60_000
SERVICE_US = 200 * 20_000
"""The longest that a short request runs."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with RedisServer(tmp_path_factory.mktemp("simulation")) as server:
        path = server.url.removeprefix("unix://")
        with redis.Redis(unix_socket_path=path, decode_responses=True) as client:
            yield client


def first_come_first_served(text: str) -> str:
    """One queue for all tenants of a class."""
    return _replaced(text, "r.rank, r.tenant\n", "r.rank, 'everybody'\n")


def round_robin(text: str) -> str:
    """Tenants take turns by requests, as many as their weight."""
    pattern = r"\(10 \* \(input - cached\) \+ cached \+ 40 \* output\) / weight"
    return re.sub(pattern, "1000000 / weight", text)


def _replaced(text: str, old: str, new: str) -> str:
    return text.replace(old, new)


Alter = Callable[[str], str]


def share_of_the_weighty(client: redis.Redis, alter: Alter = lambda text: text) -> float:
    """Of two tenants that always wait: one of weight 3 with short requests, one with long ones."""
    short = Tenant("short", (100, 400), (50, 200), weight=3, backlog=60)
    long = Tenant("long", (500, 1500), (400, 1500), backlog=20)
    Simulation(client, [short, long], kv=KV, alter=alter).run(300)
    return short.cost / (short.cost + long.cost)


def waits(client: redis.Redis, alter: Alter = lambda text: text) -> tuple[int, int]:
    """p99 of a polite tenant's waits in microseconds: alone, and beside one that sends 100 x."""
    together = []
    for noise in (0.0, 100.0):
        polite = Tenant("polite", (100, 400), (50, 200), rate=1.0)
        noisy = Tenant("noisy", (100, 400), (50, 200), rate=noise, patience_us=30 * SECOND)
        Simulation(client, [polite, noisy], kv=20_000, bound=1000, alter=alter).run(
            180, warm_up_s=90
        )
        together.append(polite.p99_wait_us())
    return together[0], together[1]


def test_shares_of_backlogged_tenants_are_their_weights(client: redis.Redis) -> None:
    assert share_of_the_weighty(client) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("scheduler", [first_come_first_served, round_robin])
def test_unfair_schedulers_fail_that_question(client: redis.Redis, scheduler: Alter) -> None:
    assert share_of_the_weighty(client, scheduler) != pytest.approx(0.75, abs=0.03)


def test_a_noisy_neighbour_delays_a_polite_tenant_by_one_service_at_most(
    client: redis.Redis,
) -> None:
    alone, beside = waits(client)
    assert beside <= 1.2 * alone + SERVICE_US


def test_first_come_first_served_fails_that_question_too(client: redis.Redis) -> None:
    alone, beside = waits(client, first_come_first_served)
    assert beside > 1.2 * alone + SERVICE_US
