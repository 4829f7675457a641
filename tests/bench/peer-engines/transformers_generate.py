"""transformers: `generate` over a static batch, bfloat16, scaled-dot-product attention."""

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList
from workload import Loading, Options, Stamp, measure, read_options


class Clock(StoppingCriteria):
    """Notes the time of every token and stops nothing."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.stamps: list[Stamp] = []

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        rows, count = input_ids.shape[0], len(self.stamps) + 1
        self.stamps.append(Stamp(time.perf_counter() - self.begin, rows * count, rows))
        return torch.zeros(rows, dtype=torch.bool)


class Engine:
    """One model in memory."""

    def __init__(self, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self._model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()

    def generate(self, prompts: list[list[int]], tokens: int) -> list[Stamp]:
        clock = Clock()
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([clock]),
            )
        assert out.shape[1] == len(prompts[0]) + tokens
        return clock.stamps


if __name__ == "__main__":
    options = read_options()
    with Loading():
        engine = Engine(options)
    measure(options, engine.generate)
