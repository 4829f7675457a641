"""transformers on the same device and shape: generate, and its continuous batching."""

import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from serve_app.bench.workload import Generate, rates
from tests.gpu.bench import Bench

PEERS = Path(__file__).parents[1] / "bench" / "peer-engines"
PAGE_TOKENS = 256
Way = Callable[[], AbstractContextManager[Generate]]


def run(bench: Bench, told: dict[str, Any]) -> None:
    import transformers

    told["transformers"] = transformers.__version__
    model = _model(bench)
    prompt, output = bench.pick((2048, 64), (64, 8))
    batches = bench.pick((1, 8, 32), (2,))
    pages = batches[-1] * -(-(prompt + output) // PAGE_TOKENS) + 1
    ways: dict[str, Way] = {
        "generate": lambda: nullcontext(_script("transformers_generate").greedy(model)),
        "continuous": lambda: _script("transformers_continuous").continuous(model, pages),
    }
    for name, way in ways.items():
        for batch in batches if name == "generate" else batches[-1:]:
            told[f"{name} {batch}"] = _attempt(bench, way, batch, prompt, output)
            _compare(bench, told[f"{name} {batch}"], batch)
            bench.save()


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


def _attempt(bench: Bench, way: Way, batch: int, prompt: int, output: int) -> dict[str, Any]:
    """Out of memory, or an interface that changed, is told and not fatal."""
    if bench.out_of_time:
        return {"error": "out of time"}
    ids = torch.randint(10, 900, (batch, prompt)).tolist()
    try:
        with way() as generate:
            generate(ids, 2)
            decode, end_to_end = rates(generate(ids, output), batch)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"tokens_per_s": decode, "end_to_end_tokens_per_s": end_to_end}


def _compare(bench: Bench, theirs: dict[str, Any], batch: int) -> None:
    ours = bench.done.get("decode", {}).get("batches", {}).get(str(batch))
    if isinstance(ours, dict) and theirs.get("tokens_per_s"):
        theirs["ours_over_theirs"] = ours["tokens_per_s"] / theirs["tokens_per_s"]
