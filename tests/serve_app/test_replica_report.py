"""A replica's voice against a real Redis: heartbeats, readiness, departure, outages."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from cluster.request import EngineStats
from serve_app.autoscaling import METRIC_NAMES
from serve_app.replica_report import UNKNOWN, ReplicaReport, TokenRate
from serve_app.tenancy.capacity import ReplicaRecord, replicas
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.store import Store

STATS = EngineStats(
    running=2,
    waiting=1,
    waiting_tokens=30,
    kv_total_blocks=100,
    kv_free_blocks=75,
    block_size=16,
    preemptions=3,
)


def report_of(store: Store) -> ReplicaReport:
    return ReplicaReport(store, "r1", 64, lambda: STATS, lambda: {"ranks": [{"pid": 7}]})


async def seen(store: Store) -> list[ReplicaRecord]:
    return await replicas(store)


def test_a_heartbeat_tells_blocks_requests_state_and_ranks(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path) as redis:
            async with Store(redis.url) as store:
                report = report_of(store)
                await report.tell()
                assert (await seen(store))[0].state == "starting"
                report.state = "ready"
                await report.tell()
                (record,) = await seen(store)
                assert (record.state, record.load.running) == ("ready", 2)
                assert (record.load.kv_total, record.load.kv_free) == (1600, 1200)
                assert (record.load.kv_planned, record.load.preemptions) == (430, 3)
                assert record.info["ranks"] == [{"pid": 7}]
                await report.leave()
                assert await seen(store) == []

    asyncio.run(scenario())


def test_an_outage_of_redis_is_waited_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = RedisServer(tmp_path)
        async with Store(f"unix://{tmp_path}/redis.sock") as store:
            report = report_of(store)
            running = asyncio.create_task(report.run())
            await asyncio.sleep(0.4)
            server.start()
            try:
                async with asyncio.timeout(20):
                    found: list[ReplicaRecord] = []
                    while not found:
                        await asyncio.sleep(0.1)
                        found = await seen(store)
                assert not running.done()
            finally:
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
                server.stop()

    asyncio.run(scenario())


def test_the_policy_gets_every_figure_it_names(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path) as redis:
            async with Store(redis.url) as store:
                report = report_of(store)
                assert report.autoscaling_stats()["queue_tokens"] == UNKNOWN
                await report.tell()
                stats = report.autoscaling_stats()
                assert set(stats) == set(METRIC_NAMES)
                assert stats["kv_used_fraction"] == 0.25
                assert stats["queue_tokens"] == 0

    asyncio.run(scenario())


def test_the_rate_is_of_the_last_second_or_so() -> None:
    rate = TokenRate()
    for second, tokens in ((0.0, 0), (0.5, 400), (1.0, 1000), (2.0, 1000)):
        rate.update(EngineStats(prompt_tokens=tokens), second)
        if second == 1.0:
            assert rate.tokens_per_s == pytest.approx(1000)
    assert rate.tokens_per_s == 0
