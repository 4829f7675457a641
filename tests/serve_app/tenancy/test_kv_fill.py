"""How full the KV cache gets beside how many are preempted, in the simulated pool.

A reservation that does not adapt fails the same question. And what is learned while a request waits
counts when its turn comes.
"""

import statistics
from collections.abc import Iterator

import msgspec
import pytest
import redis

from serve_app.tenancy.redis_server import RedisServer
from tests.serve_app.tenancy.simulation import PREFIX, Simulation, Tenant

NO_RULE = [0, 100, 0, 2**52]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with RedisServer(tmp_path_factory.mktemp("simulation")) as server:
        path = server.url.removeprefix("unix://")
        with redis.Redis(unix_socket_path=path, decode_responses=True) as client:
            yield client


def filled(client: redis.Redis, least: int, most: int) -> Simulation:
    """Short and long requests, all of which may produce 8,192; the reservation's bounds in
    percent."""
    short = Tenant("short", (100, 400), (50, 200), backlog=20)
    long = Tenant("long", (1000, 3000), (800, 6000), backlog=20)
    pool = Simulation(client, [short, long], kv=60_000)
    client.set(PREFIX + "rules", msgspec.msgpack.encode([*[NO_RULE] * 4, [least, most]]))
    pool.run(900, warm_up_s=300)
    return pool


def test_the_cache_fills_and_hardly_anybody_is_preempted(client: redis.Redis) -> None:
    pool = filled(client, 40, 200)
    assert statistics.mean(pool.fill) >= 0.8
    assert pool.preemptions() < 0.01 * pool.finished


def test_it_does_not_fill_where_the_reservation_stays(client: redis.Redis) -> None:
    assert statistics.mean(filled(client, 150, 150).fill) < 0.65
