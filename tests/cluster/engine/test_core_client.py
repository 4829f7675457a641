"""The replica's side of its ranks: who is let in, who is blamed, and what is left."""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import EngineConfig
from cluster.engine.core_client import CoreClient, EngineDeadError
from cluster.request import EngineCoreOutputs, EngineRequest, SamplingParams
from cluster.worker.channel import LENGTH
from cluster.worker.process_gang import ProcessGang
from tests.cluster.engine import fake_rank


@contextlib.asynccontextmanager
async def client(
    behaviour: str = "", host: str | None = None, **settings: Any
) -> AsyncIterator[tuple[CoreClient, list[EngineCoreOutputs], list[str]]]:
    """A started client, the steps it heard of and the deaths it announced."""
    steps: list[EngineCoreOutputs] = []
    deaths: list[str] = []
    config = EngineConfig(model_path=f"fake?{behaviour}", **settings)
    made = CoreClient(
        config,
        lambda specs: ProcessGang(fake_rank.main, specs),
        steps.append,
        deaths.append,
        host,
    )
    await made.start()
    try:
        yield made, steps, deaths
    finally:
        await made.stop()


def request(max_tokens: int) -> EngineRequest:
    return EngineRequest("r", [1, 2], SamplingParams(max_tokens=max_tokens, ignore_eos=True))


async def tokens_of(steps: list[EngineCoreOutputs], count: int) -> list[int]:
    async with asyncio.timeout(30):
        while True:
            tokens = [t for step in steps for out in step.outputs for t in out.new_token_ids]
            if len(tokens) >= count:
                return tokens
            await asyncio.sleep(0.005)


def test_strangers_at_the_port_are_turned_away() -> None:
    async def scene() -> None:
        async with client(host="127.0.0.1") as (made, steps, deaths):
            assert made._server is not None
            port = made._server.sockets[0].getsockname()[1]
            hello = b"\x95\xa5hello\xa5guess\x00\x01\xa1n"
            for noise in (b"GET / HTTP/1.1\r\n\r\n", LENGTH.pack(len(hello)) + hello, b"\xff" * 64):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(noise)
                writer.write_eof()
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
            made.add(request(max_tokens=3))
            assert len(await tokens_of(steps, 3)) == 3
            assert deaths == []

    asyncio.run(scene())


def test_a_replica_that_slept_itself_does_not_blame_its_ranks() -> None:
    async def scene() -> None:
        async with client("step_s=0.01", step_timeout_s=0.4) as (made, steps, deaths):
            made.add(request(max_tokens=300))
            await tokens_of(steps, 5)
            time.sleep(1.2)  # the whole process, as in a debugger or under a frozen container
            assert len(await tokens_of(steps, 300)) == 300
            assert deaths == []

    asyncio.run(scene())


def test_the_private_directory_is_the_owners_alone_and_leaves_with_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(directory: Path) -> None:
        async with client(tensor_parallel_size=2):
            (private,) = directory.iterdir()
            assert private.stat().st_mode & 0o077 == 0
        assert not list(directory.iterdir())

    with tempfile.TemporaryDirectory(prefix="dr-") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        asyncio.run(scene(Path(directory)))


def test_stopping_is_no_death_and_may_be_repeated() -> None:
    async def scene() -> None:
        async with client() as (made, _, deaths):
            await asyncio.gather(made.stop(), made.stop())
            made.abort("r")
            assert deaths == []
            assert made.reason == "the engine was stopped"

    asyncio.run(scene())


def test_a_gang_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gang(specs: object) -> ProcessGang:
        raise OSError("no more processes")

    async def scene() -> None:
        made = CoreClient(EngineConfig(model_path="fake"), no_gang, lambda _: None, lambda _: None)
        with pytest.raises(OSError, match="no more processes"):
            await made.start()

    with tempfile.TemporaryDirectory(prefix="dr-") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        asyncio.run(scene())
        assert not os.listdir(directory)


def test_a_rank_with_a_wrong_token_is_never_let_in() -> None:
    async def scene() -> None:
        def forgetful(specs: Any) -> ProcessGang:
            return ProcessGang(fake_rank.forgetful_main, specs)

        made = CoreClient(EngineConfig(model_path="fake"), forgetful, _ignore, _ignore)
        with pytest.raises(EngineDeadError, match="before it was up"):
            await made.start()

    asyncio.run(scene())


def _ignore(_: object) -> None:
    pass
