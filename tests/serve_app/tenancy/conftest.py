"""A real redis-server on a Unix socket for all tests here, and a fresh pool in it for each."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from serve_app.tenancy.redis_server import RedisServer
from tests.serve_app.tenancy.world import World


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def world(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[World]:
    async with World(redis_server.url, tmp_path) as world:
        yield world
