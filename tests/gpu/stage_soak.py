"""Clients of an AsyncEngine over a rank process; then the rank is killed."""

import asyncio
import itertools
import os
import signal
import statistics
import time
from typing import Any

from cluster.engine.async_engine import AsyncEngine, EngineDeadError
from cluster.request import EngineRequest, FinishReason, SamplingParams
from cluster.text.tokenizer import Tokenizer
from cluster.worker.process_gang import ProcessGang
from tests.gpu.bench import Bench
from tests.gpu.random_model import TOKENIZER, random_rank
from tests.gpu.sweep import LIKE_SOAK


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
        clients, tokens = bench.pick((LIKE_SOAK[0], 512), (3, 12))
        heard = await asyncio.gather(*(_client(engine, n, tokens) for n in range(clients)))
        between = sorted(b - a for times in heard for a, b in itertools.pairwise(times))
        told |= {
            "clients": clients,
            "tokens_per_s": _rate(heard),
            "gap_p50_ms": 1e3 * statistics.median(between),
            "gap_p99_ms": 1e3 * between[int(0.99 * len(between))],
        }
        alone = bench.done.get("decode", {})
        if config.quantization == "fp8":
            alone = bench.done.get("fp8", {}).get("weights", {})
        if "like the soak" in alone:
            rate = alone["like the soak"]["tokens_per_s"]
            told["share_of_model_alone"] = told["tokens_per_s"] / rate
        bench.save()
        told["killed_to_error_s"] = await _kill(engine)
    finally:
        await engine.stop()


def _rate(heard: list[list[float]]) -> float:
    """Tokens a second while everybody is served, prompts and the end left out."""
    begin, end = max(times[0] for times in heard), min(times[-1] for times in heard)
    return sum(begin < at <= end for times in heard for at in times) / (end - begin)


async def _client(engine: AsyncEngine, number: int, tokens: int) -> list[float]:
    """When each of its tokens came."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    prompt = [5 + (number + 7 * at) % 900 for at in range(64)]
    times: list[float] = []
    async for output in engine.generate(EngineRequest(f"client-{number}", prompt, params)):
        times += [time.perf_counter()] * len(output.token_ids)
        if output.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
            raise RuntimeError(f"client {number} after {len(times)} tokens: {output.error}")
    return times


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
