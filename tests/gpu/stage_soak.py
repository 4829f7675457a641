"""Clients of an AsyncEngine over a rank process; then the rank is killed."""

import asyncio
import os
import signal
import statistics
import time
from typing import Any

from cluster.engine.async_engine import AsyncEngine, EngineDeadError
from cluster.request import EngineRequest, SamplingParams
from cluster.text.tokenizer import Tokenizer
from cluster.worker.process_gang import ProcessGang
from tests.gpu.bench import Bench
from tests.gpu.random_model import TOKENIZER, random_rank


def run(bench: Bench, told: dict[str, Any]) -> None:
    asyncio.run(_soak(bench, told))


async def _soak(bench: Bench, told: dict[str, Any]) -> None:
    config = bench.config(
        dtype="bfloat16",
        max_num_seqs=bench.pick(64, 4),
        quantization=bench.quantization,
    )
    engine = AsyncEngine(
        config, lambda specs: ProcessGang(random_rank, specs), Tokenizer(TOKENIZER)
    )
    begun = time.perf_counter()
    await engine.start()
    told |= {"quantization": config.quantization, "start_s": time.perf_counter() - begun}
    bench.save()
    try:
        clients, tokens = bench.pick((64, 512), (3, 12))
        begun = time.perf_counter()
        gaps = await asyncio.gather(*(_client(engine, n, tokens) for n in range(clients)))
        seconds = time.perf_counter() - begun
        between = sorted(gap for client in gaps for gap in client)
        told |= {
            "clients": clients,
            "tokens_per_s": clients * tokens / seconds,
            "gap_p50_ms": 1e3 * statistics.median(between),
            "gap_p99_ms": 1e3 * between[int(0.99 * len(between))],
        }
        alone = bench.done.get("decode", {})
        if config.quantization == "fp8":
            alone = bench.done.get("fp8", {}).get("weights", {})
        decode = alone.get("batches", {}).get(str(clients))
        if isinstance(decode, dict):
            told["share_of_model_alone"] = told["tokens_per_s"] / decode["tokens_per_s"]
        bench.save()
        told["killed_to_error_s"] = await _kill(engine)
    finally:
        await engine.stop()


async def _client(engine: AsyncEngine, number: int, tokens: int) -> list[float]:
    """Seconds between its tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    prompt = [5 + (number + 7 * at) % 900 for at in range(64)]
    last, gaps = None, []
    async for _ in engine.generate(EngineRequest(f"client-{number}", prompt, params)):
        now = time.perf_counter()
        if last is not None:
            gaps.append(now - last)
        last = now
    return gaps


async def _kill(engine: AsyncEngine) -> float:
    """Seconds from the death of the rank to the engine's word of it."""
    begun = time.perf_counter()
    os.kill(engine.ranks()[0].pid, signal.SIGKILL)
    await asyncio.wait_for(asyncio.shield(engine.dead), 60)
    try:
        await engine.check_health()
    except EngineDeadError:
        return time.perf_counter() - begun
    raise AssertionError("the engine is dead and says that it is well")
