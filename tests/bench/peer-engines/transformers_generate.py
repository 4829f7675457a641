"""transformers: `generate` over a static batch, bfloat16, scaled-dot-product attention.

`tests/gpu/stage_peers.py` gives `greedy` a model of its own.
"""

from pathlib import Path
from typing import Any

import torch
from protocol import answer
from transformers import AutoModelForCausalLM, StoppingCriteriaList

from serve_app.bench.workload import Clock, Generate, Stamp, Workload


class Watch:
    """A stopping criterion that notes the time of every token and stops nothing."""

    def __init__(self, rows: int) -> None:
        self.clock = Clock(rows)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        rows = input_ids.shape[0]
        input_ids[:, -1].tolist()  # it is there when the device has drawn it
        for row in range(rows):
            self.clock.add(row, 1)
        self.clock.stamp()
        return torch.zeros(rows, dtype=torch.bool, device=input_ids.device)


def start(model: Path, threads: int, workload: Workload) -> Generate:
    torch.set_num_threads(threads)
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    return greedy(network)


def greedy(network: Any) -> Generate:
    """The workload's engine over a loaded model, wherever it is."""

    @torch.inference_mode()
    def generate(prompts: list[list[int]], tokens: int) -> list[Stamp]:
        watch = Watch(len(prompts))
        ids = torch.tensor(prompts, device=network.device)
        network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([watch]),
        )
        return watch.clock.stamps

    return generate


if __name__ == "__main__":
    answer(start)
