"""The fingerprint of an ingress follows the kernels of the pool, read from a real Redis."""

import asyncio
from pathlib import Path

import pytest

from cluster.config import EngineConfig
from serve_app.fingerprint import Fingerprint
from serve_app.kernel_watch import KernelWatch
from serve_app.tenancy.capacity import CapacityReporter, ReplicaLoad
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.store import Store

LOAD = ReplicaLoad(kv_total=1600, kv_free=1600, max_running=8)


def fingerprint(folder: Path) -> Fingerprint:
    (folder / "config.json").write_text("{}")
    return Fingerprint(EngineConfig(model_path=str(folder)))


def test_it_follows_ready_replicas_and_stays_while_there_is_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        of, told = fingerprint(tmp_path), list[str]()
        with RedisServer(tmp_path) as redis:
            async with Store(redis.url) as store:
                watch = KernelWatch(store, of, told.append)
                one, two = CapacityReporter(store, "r1"), CapacityReporter(store, "r2")
                await one.report(LOAD, "starting", {"kernels": ""})
                await watch.view()
                assert told == []
                await one.report(LOAD, "ready", {"kernels": "native bf16dot"})
                totals, records = await watch.view()
                assert (totals.ready_replicas, len(records)) == (1, 1)
                await two.report(LOAD, "ready", {"kernels": "native bf16dot"})
                await watch.view()
                assert told == [of.name(["native bf16dot"])]
                assert told != [of.name()]
                await two.report(LOAD, "ready", {"kernels": "native fp32fma"})
                await watch.view()
                assert told[1:] == [of.name(["native bf16dot", "native fp32fma"])]
                await one.leave()
                await two.leave()
                await watch.view()
                assert len(told) == 2

    asyncio.run(scenario())


def test_it_looks_again_after_an_outage_of_redis(tmp_path: Path) -> None:
    async def scenario() -> None:
        of, told = fingerprint(tmp_path), list[str]()
        server = RedisServer(tmp_path)
        async with Store(f"unix://{tmp_path}/redis.sock") as store:
            watch = KernelWatch(store, of, told.append, period_s=0.05)
            with pytest.raises(StoreUnavailable):
                await watch.view()
            running = asyncio.create_task(watch.run())
            server.start()
            try:
                async with Store(server.url) as other, asyncio.timeout(60):
                    reporter = CapacityReporter(other, "r1")
                    while not told:
                        await reporter.report(LOAD, "ready", {"kernels": "native"})
                        await asyncio.sleep(0.05)
                assert told == [of.name(["native"])]
                assert not running.done()
            finally:
                running.cancel()
                server.stop()

    asyncio.run(scenario())
