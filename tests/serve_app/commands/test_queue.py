"""Who waits, and who changed what, as typed beside a running service."""

import asyncio
import json
from pathlib import Path

import pytest

from serve_app.tenancy.redis_server import RedisServer
from tests.serve_app.tenancy.world import World, attempt, until
from tests.serve_app.typed import Command, command_on


def test_without_a_service_there_is_an_error_line(typed: Command) -> None:
    for words in (("queue", "show"), ("audit",)):
        result = typed(*words)
        assert result.exit_code == 1
        assert "no service runs on" in result.stderr


def test_the_queue_is_shown_by_tenant_with_its_oldest_waiter(
    typed: Command, redis: RedisServer, served: Path, tmp_path: Path
) -> None:
    del typed  # no settings around
    config = tmp_path / "service.yaml"

    async def scenario() -> tuple[dict[str, object], str]:
        async with World(redis.url, tmp_path) as world:
            config.write_text(
                f"model: {{path: m}}\nadmission: {{redis_url: '{redis.url}', pool: {world.pool}}}\n"
            )
            key, other = await world.key("acme"), await world.key("bolt")
            await world.replica(slots=1)
            queue = await world.ingress()
            ticket = await queue.admit(world.request(key))
            waiters = [
                asyncio.create_task(attempt(queue, world.request(one))) for one in (key, key, other)
            ]

            async def waiting() -> bool:
                return bool((await world.pool_record()).get("waiting") == 3)

            await until(waiting)
            run = command_on(tmp_path)
            words = ("queue", "show", "--config", str(config))
            shown = await asyncio.to_thread(run, *words, "--json")
            table = await asyncio.to_thread(run, *words)
            for waiter in waiters:
                waiter.cancel()
            await ticket.settle(prompt_tokens=1, output_tokens=1)
            return json.loads(shown.stdout), table.stdout

    shown, table = asyncio.run(scenario())
    assert (shown["running"], shown["waiting"], shown["replicas"]) == (1, 3, 1)
    tenants = {row["tenant"]: row for row in shown["tenants"]}  # type: ignore[attr-defined]
    assert (tenants["acme"]["waiting"], tenants["acme"]["in_flight"]) == (2, 3)
    assert (tenants["bolt"]["waiting"], tenants["bolt"]["in_flight"]) == (1, 1)
    assert all(0 <= row["oldest_wait_s"] < 60 for row in tenants.values())
    assert "1 running, 3 waiting, 1 ready replicas" in table
    assert "bolt" in table


@pytest.mark.parametrize("limit", [1, 2])
def test_the_audit_tells_the_newest_change_first(
    typed: Command, redis: RedisServer, served: Path, limit: int
) -> None:
    del typed, redis
    run = command_on(served)
    made = json.loads(run("keys", "create", "--tenant", "acme", "--json").stdout)
    run("tenants", "set", "acme", "--weight", "2")
    run("keys", "revoke", made["id"])
    entries = json.loads(run("audit", "--limit", str(limit), "--json").stdout)["audit"]
    assert len(entries) == limit
    newest = entries[0]
    assert (newest["op"], newest["kind"], newest["name"]) == ("revoke", "key", made["id"])
    assert newest["changes"] == ["status=revoked"]
    assert newest["by"].startswith("cli:")
    assert made["id"] in run("audit").stdout
