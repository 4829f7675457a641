"""What `deeprequest status --json` says, from heartbeats in a real Redis."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from serve_app.status import publish_keys, read_status, status_if_known
from serve_app.tenancy.capacity import CapacityReporter, ReplicaLoad
from serve_app.tenancy.key_file import KeyFile
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.store import Store

pytestmark = pytest.mark.anyio
RANKS = [{"rank": 0, "pid": 7, "node": "a"}, {"rank": 1, "pid": 8, "node": "b"}]
LOAD = ReplicaLoad(kv_total=3000, kv_free=2000, max_running=8, running=3, waiting=2)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_replicas_show_their_load_and_their_ranks(redis: RedisServer) -> None:
    async with Store(redis.url, "loaded", timeout_s=3.0) as store:
        about = {"ranks": RANKS, "progress": "ready"}
        await CapacityReporter(store, "r1", ttl_s=60).report(LOAD, "ready", about)
        empty = ReplicaLoad(kv_total=0, kv_free=0, max_running=0)
        await CapacityReporter(store, "r2", ttl_s=60).report(empty, "starting")
    one = {"id": "r1", "state": "ready", "kv_used": 0.3333, "running": 3, "waiting": 2}
    other = {"id": "r2", "state": "starting", "kv_used": 0.0, "running": 0, "waiting": 0}
    assert await read_status(redis.url, "loaded") == {
        "replicas": [one | about, other | {"ranks": [], "progress": ""}],
        "queue": {"waiting": 0, "running": 0},
    }


async def test_a_replica_that_left_and_another_pool_are_not_shown(redis: RedisServer) -> None:
    async with Store(redis.url, "left", timeout_s=3.0) as store:
        reporter = CapacityReporter(store, "r1", ttl_s=60)
        await reporter.report(LOAD)
        assert len((await read_status(redis.url, "left"))["replicas"]) == 1
        await reporter.leave()
    nobody = {"replicas": [], "queue": {"waiting": 0, "running": 0}}
    assert await read_status(redis.url, "left") == nobody
    assert await read_status(redis.url, "never-used") == nobody


async def test_published_keys_are_known_in_their_pool_alone(
    redis: RedisServer, tmp_path: Path
) -> None:
    key_file = KeyFile(tmp_path / "tenants.yaml", b"p" * 64)
    created = key_file.create("acme")
    await publish_keys(redis.url, key_file.read(), "keyed")
    async with Store(redis.url, "keyed", timeout_s=3.0) as store:
        assert (await store.run("who", created.key.digest))[:2] == ["ok", created.key.id]
    async with Store(redis.url, "other", timeout_s=3.0) as store:
        assert (await store.run("who", created.key.digest))[0] == "rebuild"


async def test_silence_of_redis_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await read_status(f"unix://{tmp_path}/none.sock")


async def test_what_runs_is_unknown_while_redis_hangs_and_known_again_afterwards(
    tmp_path: Path,
) -> None:
    with RedisServer(tmp_path / "redis") as redis, structlog.testing.capture_logs() as told:
        assert redis.pid is not None
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            assert await status_if_known(redis.url) is None
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        while await status_if_known(redis.url) is None:
            pass  # a loaded machine takes its time
    assert not told  # who asks twice a second tells it in words of its own
