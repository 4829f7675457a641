"""transformers on the same device and shape, generate and its continuous batching, beside our own
engine: whole engines all of them, the same prompts, one after the other."""

import asyncio
import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from cluster.engine.async_engine import AsyncEngine
from cluster.request import EngineRequest, FinishReason, SamplingParams
from cluster.text.tokenizer import Tokenizer
from cluster.worker.process_gang import ProcessGang
from serve_app.bench.workload import Clock, Generate, Stamp, rates
from tests.gpu.bench import Bench
from tests.gpu.random_model import TOKENIZER, random_rank

PEERS = Path(__file__).parents[1] / "bench" / "peer-engines"
PAGE_TOKENS = 256
Way = Callable[[int], AbstractContextManager[Generate]]
"""(prompts at once) -> who generates for them."""


def run(bench: Bench, told: dict[str, Any]) -> None:
    import transformers

    told["transformers"] = transformers.__version__
    prompt, output = bench.pick((2048, 256), (64, 8))
    batches = bench.pick((1, 8, 32), (2,))
    prompts = {batch: torch.randint(10, 900, (batch, prompt)).tolist() for batch in batches}
    told["quantization of ours"] = bench.quantization
    asyncio.run(_ours(bench, prompts, output, told))  # its process ends before their weights come
    model = _model(bench)

    def static(batch: int) -> AbstractContextManager[Generate]:
        return nullcontext(_script("transformers_generate").greedy(model))

    def continuous(batch: int) -> AbstractContextManager[Generate]:
        pages = batch * -(-(prompt + output) // PAGE_TOKENS) + 1
        opened: AbstractContextManager[Generate] = _script("transformers_continuous").continuous(
            model, pages
        )
        return opened

    for batch in batches:
        _beside(bench, told, "generate", batch, _attempt(bench, static, prompts[batch], output))
    for batch in reversed(batches):  # the largest that fits beside the weights
        theirs = _attempt(bench, continuous, prompts[batch], output)
        _beside(bench, told, "continuous", batch, theirs)
        if "error" not in theirs:
            break


def _beside(
    bench: Bench, told: dict[str, Any], name: str, batch: int, theirs: dict[str, Any]
) -> None:
    """Their figures, and ours over them."""
    ours = told[f"ours {batch}"]
    over = {f"ours_over_theirs, {f}": ours[f] / theirs[f] for f in ours if theirs.get(f)}
    told[f"{name} {batch}"] = theirs | over
    bench.save()


async def _ours(
    bench: Bench, prompts: dict[int, list[list[int]]], output: int, told: dict[str, Any]
) -> None:
    """The engine over a rank process, without the service."""
    config = bench.config(
        dtype="bfloat16",
        max_num_seqs=max(prompts),
        quantization=bench.quantization,
        enable_prefix_caching=False,
    )
    engine = AsyncEngine(
        config, lambda specs: ProcessGang(random_rank, specs), Tokenizer(TOKENIZER)
    )
    await engine.start()
    try:
        for batch, ids in prompts.items():
            await _generate(engine, ids, 2)
            decode, end_to_end = rates(await _generate(engine, ids, output), batch)
            told[f"ours {batch}"] = {
                "tokens_per_s": decode,
                "end_to_end_tokens_per_s": end_to_end,
            }
            bench.save()
    finally:
        await engine.stop()


async def _generate(engine: AsyncEngine, prompts: list[list[int]], tokens: int) -> list[Stamp]:
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    clock = Clock(len(prompts))

    async def follow(place: int) -> None:
        request = EngineRequest(f"{tokens} to {place}", prompts[place], params)
        async for output in engine.generate(request):
            if output.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
                raise RuntimeError(output.error)
            clock.add(place, len(output.token_ids))
            clock.stamp()

    await asyncio.gather(*(follow(place) for place in range(len(prompts))))
    return clock.stamps


def _script(name: str) -> Any:
    """One of the peers' own scripts, which stand in a folder of their own."""
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    return importlib.import_module(name)


def _model(bench: Bench) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    fields = {k: v for k, v in bench.shape.items() if k not in ("model_type", "rope_theta")}
    config = Qwen2Config(**fields, dtype=torch.bfloat16)
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with bench.device.torch_device:
            return Qwen2ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def _attempt(bench: Bench, way: Way, prompts: list[list[int]], output: int) -> dict[str, Any]:
    """Out of memory, or an interface that changed, is told and not fatal."""
    if bench.out_of_time:
        return {"error": "out of time"}
    try:
        with way(len(prompts)) as generate:
            generate(prompts, 2)
            decode, end_to_end = rates(generate(prompts, output), len(prompts))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"tokens_per_s": decode, "end_to_end_tokens_per_s": end_to_end}
