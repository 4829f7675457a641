"""Admission on every form of Redis, each a real one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve_app.tenancy.capacity import pool_totals
from serve_app.tenancy.refusals import RateLimited, StoreUnavailable
from serve_app.tenancy.store import Store, StoreError
from tests.serve_app.tenancy.redis_sites import cluster, nodes, sentinel, tls_before, until
from tests.serve_app.tenancy.world import World, attempt
from tests.serve_app.tenancy.world import until as comes_true

pytestmark = pytest.mark.anyio

ACCOUNT = (
    "user deeprequest on >s3cret~/ resetkeys ~dr:* -@all +@read +@write +@connection "
    "+eval +evalsha +time -@dangerous"
)
"""As docs/operations.md has it."""


@contextlib.asynccontextmanager
async def world_at(url: str, folder: Path) -> AsyncIterator[World]:
    async with World(url, folder) as world:
        yield world


async def serves(world: World) -> None:
    """Keys, limits, the queue with its blocking read, the end: all that an ingress asks."""
    key, _ = await world.key(rpm=3), await world.replica(slots=1)
    queues = [await world.ingress() for _ in range(2)]
    assert (await queues[1].identify(key.secret)).key_id == key.key.id
    first = await queues[0].admit(world.request(key))
    waiting = asyncio.create_task(queues[1].admit(world.request(key)))

    async def queued() -> bool:
        return (await pool_totals(world.store)).waiting == 1

    await comes_true(queued)
    await first.settle(prompt_tokens=1, output_tokens=1)
    second = await waiting
    assert second.fence > first.fence
    await second.settle(prompt_tokens=1, output_tokens=1)
    await queues[0].admit(world.request(key))
    assert isinstance(await attempt(queues[0], world.request(key)), RateLimited)


async def test_a_cluster_of_three_serves(tmp_path: Path) -> None:
    with cluster(tmp_path / "c") as found:
        hosts = ",".join(node.address for node in found[:2])
        async with world_at(f"redis+cluster://{hosts}", tmp_path) as world:
            await serves(world)
        held = [node.ask("DBSIZE") for node in found]
        assert sorted(map(bool, held)) == [False, False, True]  # one pool, one slot, one node


async def test_a_user_that_may_touch_nothing_but_our_keys_serves(tmp_path: Path) -> None:
    with nodes(tmp_path / "n", 1, ACCOUNT, "user default off") as (node,):
        url = f"redis://deeprequest:s3cret~%2F@{node.address}"
        async with world_at(url, tmp_path) as world:
            await serves(world)
        for wrong in ("deeprequest:other", "nobody:s3cret"):
            async with Store(f"redis://{wrong}@{node.address}") as store:
                with pytest.raises(StoreUnavailable) as refused:
                    await store.run("view")
                assert "s3cret" not in refused.value.reason
        async with Store(url, "main") as store:
            with pytest.raises(StoreError, match=r"NOPERM|permission"):
                await store.command("GET", "somebody-else's")


async def test_tls_serves_and_trusts_nobody_else(tmp_path: Path) -> None:
    with nodes(tmp_path / "n", 1) as (node,):
        async with tls_before(node, tmp_path) as (port, authority):
            url = f"rediss://127.0.0.1:{port}"
            async with world_at(f"{url}?ca_file={authority}", tmp_path) as world:
                await serves(world)
            async with Store(url) as store:
                with pytest.raises(StoreUnavailable) as refused:
                    await store.run("view")
                assert "certificate" in refused.value.reason.lower()


async def test_when_sentinel_names_another_master_admission_goes_on_there(tmp_path: Path) -> None:
    with sentinel(tmp_path / "s") as (master, replica, watcher):
        async with world_at(f"redis+sentinel://{watcher.address}/main", tmp_path) as world:
            await serves(world)
            key = await world.key()
            await world.replica()
            queue = await world.ingress()
            running = await queue.admit(world.request(key))
            until(lambda: replica.ask("EXISTS", f"{world.store.prefix}req:{running.rid}"))
            await asyncio.to_thread(master.stop)

            async def admits() -> bool:
                try:
                    ticket = await queue.admit(world.request(key))
                except StoreUnavailable:
                    return False
                await ticket.settle(prompt_tokens=1, output_tokens=1)
                return True

            await comes_true(admits)
            await running.settle(prompt_tokens=1, output_tokens=1)
            assert replica.ask("ROLE")[0] == "master"
            rids = [row["rid"] for _, row in await ledger(world)]
            assert rids.count(running.rid) == 1
            assert len(set(rids)) == len(rids)


async def ledger(world: World) -> list[tuple[str, dict[str, str]]]:
    found: list[tuple[str, dict[str, str]]] = await world.store.command(
        "XRANGE", f"{world.store.prefix}led", "-", "+"
    )
    return found
