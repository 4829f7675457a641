"""Rank processes with the real worker: torch, gloo and the demo model."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.config import EngineConfig
from cluster.engine.async_engine import AsyncEngine, EngineDeadError
from cluster.engine.rank_main import main
from cluster.request import EngineRequest, RequestOutput, SamplingParams
from cluster.text.tokenizer import Tokenizer
from cluster.worker.process_gang import ProcessGang

MODEL = Path(__file__).resolve().parents[3] / "configs" / "models" / "deeprequest-demo"


@pytest.fixture(autouse=True)
def nothing_is_left_in_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    directory = tempfile.mkdtemp(prefix="dr-")
    monkeypatch.setattr(tempfile, "tempdir", directory)
    yield
    left = os.listdir(directory)
    shutil.rmtree(directory)
    assert not left


def make_engine(outputs: list[RequestOutput], **settings: Any) -> AsyncEngine:
    config = EngineConfig(
        **{
            "model_path": str(MODEL),
            "device": "cpu",
            "num_kv_blocks": 300,
            "load_progress": False,
            **settings,
        }
    )
    tokenizer = Tokenizer(MODEL)
    return AsyncEngine(config, lambda specs: ProcessGang(main, specs), tokenizer, outputs.extend)


def test_two_ranks_listen_on_loopback_only_and_die_together() -> None:
    outputs: list[RequestOutput] = []

    async def scene() -> list[psutil.Process]:
        engine = make_engine(outputs, tensor_parallel_size=2)
        facts = await engine.start()
        assert (facts.num_kv_blocks, facts.device, facts.dtype) == (300, "cpu", "float32")
        assert facts.eos_token_ids
        ranks = [psutil.Process(info.pid) for info in engine.ranks()]
        try:
            addresses = {c.laddr.ip for r in ranks for c in r.net_connections() if c.laddr}
            assert addresses <= {"127.0.0.1", "::1"}
            engine.submit(
                EngineRequest("r", [1, 2], SamplingParams(max_tokens=4000, ignore_eos=True))
            )
            while not outputs:
                await asyncio.sleep(0.01)
            ranks[1].send_signal(signal.SIGKILL)
            assert "rank 1 is gone" in await engine.dead
            assert outputs[-1].error == "engine_dead"
        finally:
            await engine.stop()
        return ranks

    ranks = asyncio.run(scene())
    assert not any(rank.is_running() for rank in ranks)


def test_a_missing_checkpoint_is_named() -> None:
    async def scene() -> None:
        await make_engine([], model_path=str(MODEL / "nothing-here")).start()

    with pytest.raises(EngineDeadError, match=r"rank 0: .*nothing-here"):
        asyncio.run(scene())
