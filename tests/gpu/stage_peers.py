"""transformers on the same device and shape: generate, and its continuous batching."""

import gc
import time
from typing import Any

import torch

from tests.gpu.bench import Bench


@torch.no_grad()
def run(bench: Bench) -> dict[str, Any]:
    import transformers

    told: dict[str, Any] = {"transformers": transformers.__version__}
    model = _model(bench)
    prompt, output = bench.pick((2048, 64), (64, 8))
    for batch in bench.pick((1, 8, 32), (2,)):
        if not bench.out_of_time:
            told[f"generate {batch}"] = _generate(bench, model, batch, prompt, output)
    if not bench.out_of_time:
        told["continuous batching"] = _attempt(bench, model, bench.pick(32, 2), prompt, output)
    ours = bench.done.get("decode", {}).get("batches", {})
    for batch in bench.pick((1, 8, 32), (2,)):
        theirs, mine = told.get(f"generate {batch}"), ours.get(str(batch))
        if theirs and isinstance(mine, dict):
            theirs["ours_over_theirs"] = mine["tokens_per_s"] / theirs["tokens_per_s"]
    del model
    gc.collect()
    return told


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


def _generate(bench: Bench, model: Any, batch: int, prompt: int, output: int) -> dict[str, Any]:
    """Decode alone: what more tokens take longer."""
    ids = torch.randint(10, 900, (batch, prompt), device=bench.device.torch_device)

    def seconds(tokens: int) -> float:
        begun = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        bench.device.synchronize()
        return time.perf_counter() - begun

    seconds(2)
    step = (seconds(output) - seconds(1)) / (output - 1)
    return {"ms_a_step": 1e3 * step, "tokens_per_s": batch / step}


def _attempt(bench: Bench, model: Any, batch: int, prompt: int, output: int) -> dict[str, Any]:
    """The whole run, prompts included; its interface is young: a failure is told, not fatal."""
    from transformers import GenerationConfig

    ids = torch.randint(10, 900, (batch, prompt)).tolist()
    wanted = GenerationConfig(
        max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    try:
        begun = time.perf_counter()
        answers = model.generate_batch(inputs=ids, generation_config=wanted, progress_bar=False)
        seconds = time.perf_counter() - begun
        count = sum(len(answer.generated_tokens) for answer in answers.values())
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"batch": batch, "tokens": count, "end_to_end_tokens_per_s": count / seconds}
