"""OpenVINO GenAI, continuous batching: --model is an exported folder (16-bit or int8 weights).

KV cache of 2 GB, prefix caching off, 2,048 tokens a step, which is faster in prefill than its
default of 256 and elsewhere the same; inference and cache precision are its own defaults.
"""

from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from protocol import answer

from serve_app.bench.workload import Clock, Generate, Stamp, Workload

CACHE_GB = 2
STEP_TOKENS = 2048


def start(model: Path, threads: int, workload: Workload) -> Generate:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GB
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = STEP_TOKENS
    properties = {"INFERENCE_NUM_THREADS": threads}
    pipe = openvino_genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", properties)
    submitted = 0

    def generate(prompts: list[list[int]], tokens: int) -> list[Stamp]:
        nonlocal submitted
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        clock = Clock(len(prompts))
        handles = []
        for prompt in prompts:
            ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(pipe.add_request(submitted, ids, config))
            submitted += 1
        while pipe.has_non_finished_requests():
            pipe.step()
            for place, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        clock.add(place, len(output.generated_ids))
            clock.stamp()
        return clock.stamps

    return generate


if __name__ == "__main__":
    answer(start)
