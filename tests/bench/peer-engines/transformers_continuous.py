"""transformers: continuous batching by its manager, kept alive; paged attention, bfloat16.

`tests/gpu/stage_peers.py` gives `continuous` a model of its own.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from protocol import answer
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from serve_app.bench.workload import Clock, Generate, Stamp, Workload

PAGE_TOKENS, PAGES, STEP_TOKENS = 256, 128, 2048


def start(model: Path, threads: int, workload: Workload) -> Generate:
    torch.set_num_threads(threads)
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    return contextlib.ExitStack().enter_context(continuous(network, PAGES))


@contextlib.contextmanager
def continuous(network: Any, pages: int) -> Iterator[Generate]:
    """The workload's engine over a loaded model, with a cache of so many pages; it works until the
    end of the context."""
    known = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    page = "page_size" if "page_size" in known else "block_size"  # so in 5.17
    settings = {page: PAGE_TOKENS, "num_blocks": pages, "max_batch_tokens": STEP_TOKENS}
    manager = network.init_continuous_batching(
        GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        ContinuousBatchingConfig(**settings, allow_block_sharing=False),
    )
    manager.start()

    def generate(prompts: list[list[int]], tokens: int) -> list[Stamp]:
        clock = Clock(len(prompts))
        places = {
            manager.add_request(prompt, max_new_tokens=tokens, streaming=True): place
            for place, prompt in enumerate(prompts)
        }
        while sum(clock.out) < tokens * len(prompts):
            output = manager.get_result(timeout=1.0)
            if output is None:
                if not manager.is_running():
                    raise RuntimeError(f"its loop ended: {getattr(manager, 'fatal_error', None)}")
                continue
            if output.error:
                raise RuntimeError(output.error)
            place = places[output.request_id]
            clock.add(place, len(output.generated_tokens) - clock.out[place])
            clock.stamp()
        return clock.stamps

    try:
        yield generate
    finally:
        manager.stop(block=True)


if __name__ == "__main__":
    answer(start)
