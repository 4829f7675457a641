"""vLLM's CPU build through its offline engine: prefix caching off, a KV cache of 2 GB.

VLLM_CPU_OMP_THREADS_BIND pins its threads to the first cores this process may use.
"""

import os
from pathlib import Path

from protocol import answer

from serve_app.bench.workload import Clock, Generate, Stamp, Workload

MODEL_LEN = 4096


def start(model: Path, threads: int, workload: Workload) -> Generate:
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(model),
        dtype="bfloat16",
        max_model_len=MODEL_LEN,
        max_num_seqs=max(workload.batches),
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    ).llm_engine
    submitted = 0

    def generate(prompts: list[list[int]], tokens: int) -> list[Stamp]:
        nonlocal submitted
        params = SamplingParams(
            max_tokens=tokens, temperature=0.0, ignore_eos=True, detokenize=False
        )
        first = submitted
        clock = Clock(len(prompts))
        for prompt in prompts:
            engine.add_request(str(submitted), {"prompt_token_ids": prompt}, params)
            submitted += 1
        while engine.has_unfinished_requests():
            for output in engine.step():
                place = int(output.request_id) - first
                clock.add(place, len(output.outputs[0].token_ids) - clock.out[place])
            clock.stamp()
        return clock.stamps

    return generate


if __name__ == "__main__":
    answer(start)
