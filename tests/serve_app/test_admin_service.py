"""The admin API as a process beside the file, while the ingresses have none."""

import asyncio
import os
import sys
from pathlib import Path

import httpx2 as httpx
import pytest

from serve_app.admin_service import create_admin_app
from serve_app.tenancy.admission import AdmissionQueue
from serve_app.tenancy.key_admin import KeyAdmin
from serve_app.tenancy.redis_server import RedisServer
from tests.e2e.service import COMMAND, ROOT, free_port
from tests.serve_app.tenancy.world import World, until

pytestmark = pytest.mark.anyio
KEYS = "/admin/v1/keys"


def as_bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def test_it_serves_the_admin_api_and_nothing_else(redis: RedisServer, tmp_path: Path) -> None:
    async with World(redis.url, tmp_path) as world:
        lookup = AdmissionQueue(world.store, world.keys, world.pepper)
        app = create_admin_app(lookup, KeyAdmin(world.store, world.keys))
        admin = as_bearer((await world.key_for("admin")).secret)
        user = as_bearer((await world.key()).secret)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            made = await client.post(KEYS, json={"tenant": "acme", "rpm": 5}, headers=admin)
            assert made.status_code == 200
            ingress = await world.ingress()
            assert (await ingress.identify(made.json()["secret"])).tenant == "acme"
            assert (await client.get(KEYS, headers=user)).status_code == 403
            assert (await client.get(KEYS)).status_code == 401
            assert (await client.get("/health")).json() == {"status": "ok"}
            for path in ("/v1/models", "/v1/chat/completions", "/docs", "/openapi.json"):
                assert (await client.get(path, headers=admin)).status_code == 404


async def test_a_key_made_at_the_command_is_good_at_an_ingress_without_the_file(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with World(redis.url, tmp_path, "main") as world:
        admin, port = as_bearer((await world.key_for("admin")).secret), free_port()
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "admin", "--port", str(port), "--state-dir", str(tmp_path)),
            env=os.environ | {"DEEPREQUEST_REDIS_URL": redis.url, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=sys.stderr,
        )
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

                async def is_up() -> bool:
                    try:
                        return (await client.get("/health")).status_code == 200
                    except httpx.TransportError:
                        return False

                await until(is_up)
                made = await client.post(KEYS, json={"tenant": "acme"}, headers=admin)
                elsewhere = tmp_path / "ingress"
                elsewhere.mkdir()
                (elsewhere / "pepper").write_bytes((tmp_path / "pepper").read_bytes())
                async with World(redis.url, elsewhere, "main") as other:
                    ingress = await other.ingress()
                    assert (await ingress.identify(made.json()["secret"])).tenant == "acme"
                path = f"{KEYS}/{made.json()['key']['id']}"
                assert (await client.delete(path, headers=admin)).status_code == 200
                audit = (await client.get("/admin/v1/audit", headers=admin)).json()["audit"]
                assert [entry["op"] for entry in audit[:2]] == ["revoke", "create"]
                assert audit[0]["by"].startswith("key:")
        finally:
            process.terminate()
            await process.wait()
