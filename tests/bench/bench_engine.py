"""Decode speed of the engine alone: AsyncEngine over local rank processes, the demo model, no HTTP.

Prints medians over rounds; nothing is asserted about speed. Run with `make bench`.
"""

import asyncio
import statistics
import time
from pathlib import Path

import pytest

from cluster.config import EngineConfig
from cluster.engine.async_engine import AsyncEngine
from cluster.engine.rank_main import main as rank_main
from cluster.request import EngineRequest, SamplingParams
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import Tokenizer
from cluster.worker.process_gang import ProcessGang

MODEL = Path(__file__).parents[2] / "configs/models/deeprequest-demo"
BATCHES = (1, 8, 32, 64)
OUTPUT_TOKENS = 128
ROUNDS = 3


@pytest.mark.parametrize("ranks", [1, 2])
def test_decode_speed_of_the_engine(ranks: int) -> None:
    rates = asyncio.run(measured_rates(ranks))
    print(f"\nengine, demo model, {ranks} rank(s), {OUTPUT_TOKENS} tokens out, median of {ROUNDS}")
    for batch, rate in rates.items():
        print(f"  batch {batch:3d}: {rate:8.0f} tokens/s   {1000 * batch / rate:6.2f} ms a step")
    assert set(rates) == set(BATCHES)


async def measured_rates(ranks: int) -> dict[int, float]:
    config = EngineConfig(
        model_path=str(MODEL),
        tensor_parallel_size=ranks,
        device="cpu",
        dtype="float32",
        num_kv_blocks=2048,
        load_progress=False,
    )
    tokenizer = Tokenizer(MODEL)
    prompt = ChatTemplate(tokenizer).render([Message("user", "Count from 1 to 200")])
    engine = AsyncEngine(config, lambda specs: ProcessGang(rank_main, specs), tokenizer)
    await engine.start()
    try:
        return {
            batch: statistics.median(
                [await one_round(engine, prompt, batch, f"{batch}-{r}") for r in range(ROUNDS)]
            )
            for batch in BATCHES
        }
    finally:
        await engine.stop()


async def one_round(engine: AsyncEngine, prompt: list[int], batch: int, name: str) -> float:
    """Tokens per second of `batch` requests that start together."""
    params = SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.6, ignore_eos=True)

    async def one(index: int) -> int:
        request = EngineRequest(f"{name}-{index}", prompt, params)
        return sum([len(output.token_ids) async for output in engine.generate(request)])

    started = time.perf_counter()
    tokens = sum(await asyncio.gather(*(one(index) for index in range(batch))))
    return tokens / (time.perf_counter() - started)
