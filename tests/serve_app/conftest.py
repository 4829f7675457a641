"""One site for each test that wants one."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cluster.text.tokenizer import Tokenizer
from serve_app.tenancy.redis_server import RedisServer
from tests.serve_app.site import MODEL, Site, opened_site
from tests.serve_app.typed import Command, command_on


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(str(MODEL))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state[/x]"


@pytest.fixture
def typed(state: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs commands on the state directory, with no setting around."""
    for name in [name for name in os.environ if name.startswith("DEEPREQUEST_")]:
        monkeypatch.delenv(name)
    return command_on(state)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The Redis that a service on `<state-dir>` runs; its data is in `<state-dir>/redis`."""
    with RedisServer(tmp_path_factory.mktemp("served") / "redis") as server:
        yield server


@pytest.fixture
def served(redis: RedisServer) -> Path:
    """The state directory of a service that runs."""
    return redis.data_dir.parent


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def site(
    redis_server: RedisServer, tokenizer: Tokenizer, tmp_path: Path
) -> AsyncIterator[Site]:
    async with opened_site(redis_server, tokenizer, tmp_path) as site:
        yield site
