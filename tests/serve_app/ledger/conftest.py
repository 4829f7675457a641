"""A database for each test: SQLite always, PostgreSQL where one is named."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve_app.ledger.database import LedgerDatabase
from serve_app.tenancy.redis_server import RedisServer
from tests.serve_app.ledger.breaking import BreakingDatabase
from tests.serve_app.tenancy.world import World

POSTGRES = "DEEPREQUEST_TEST_POSTGRES_URL"


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


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    named = os.environ.get(POSTGRES)
    if named is None:
        pytest.skip(f"set {POSTGRES}=postgresql://user:password@host/an-empty-database")
    engine = sa.create_engine(sa.make_url(named).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS ledger"))
    engine.dispose()
    return named


@pytest.fixture
def breaking(url: str) -> Iterator[BreakingDatabase]:
    found = BreakingDatabase(url)
    yield found
    found.close()


@pytest.fixture
def database(url: str) -> Iterator[LedgerDatabase]:
    found = LedgerDatabase(url)
    yield found
    found.close()
