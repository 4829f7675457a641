"""OpenVINO GenAI, continuous batching: --model is an exported folder (16-bit or int8 weights).

KV cache of 2 GB, prefix caching off; inference and cache precision are its own defaults.
"""

import os
import time

import numpy as np
import openvino as ov
import openvino_genai as genai
from workload import Loading, Options, Stamp, measure, read_options


class Engine:
    """One pipeline; steps are driven from here, so every token has its time."""

    def __init__(self, options: Options) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = int(os.environ.get("OV_BATCHED", "2048"))
        properties = {"INFERENCE_NUM_THREADS": options.threads}
        self._pipe = genai.ContinuousBatchingPipeline(
            str(options.model), scheduler, "CPU", properties
        )
        self._id = 0

    def generate(self, prompts: list[list[int]], tokens: int) -> list[Stamp]:
        config = genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        begin = time.perf_counter()
        handles = []
        for prompt in prompts:
            ids = ov.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self._pipe.add_request(self._id, ids, config))
            self._id += 1
        out = [0] * len(prompts)
        stamps = []
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
            now = time.perf_counter() - begin
            for place, handle in enumerate(handles):
                while handle.can_read():
                    out[place] += sum(len(o.generated_ids) for o in handle.read().values())
            if sum(out):
                stamps.append(Stamp(now, sum(out), sum(count > 0 for count in out)))
        assert out == [tokens] * len(prompts), out
        return stamps


if __name__ == "__main__":
    options = read_options()
    with Loading():
        engine = Engine(options)
    measure(options, engine.generate)
