"""What a step costs beside the model: schedule, frame, update, output; the executor does nothing.

Prints the median of a decode step in milliseconds for the rank that plans, and for the replica that
turns its outputs into text. Run with `make bench`, or alone:

    python -m tests.bench.bench_step_overhead 64 256
"""

import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.batch import ModelRunnerOutput, SchedulerOutput, decode_scheduler_output, encode
from cluster.engine import core_messages
from cluster.engine.core_messages import StepOutputs
from cluster.engine.engine_core import EngineCore
from cluster.engine.kv_cache import KVCacheManager
from cluster.engine.output_processor import OutputProcessor
from cluster.engine.scheduler import Scheduler, SchedulerConfig
from cluster.request import EngineCoreOutputs, EngineRequest, SamplingParams
from cluster.text.tokenizer import Tokenizer

MODEL = Path(__file__).parents[2] / "configs/models/deeprequest-demo"
PROMPT, OUTPUT, BLOCK = 128, 400, 16
WARM_STEPS = 20


class Answer(NamedTuple):
    """A step that was computed when it was submitted."""

    computed: ModelRunnerOutput

    def result(self) -> ModelRunnerOutput:
        return self.computed


class NoExecutor:
    """Encodes each frame for the other ranks, decodes it as one of them, and draws one token."""

    def __init__(self, token_id: int) -> None:
        self._token_id = token_id

    def submit(self, scheduled: SchedulerOutput) -> Answer:
        frame = decode_scheduler_output(encode(scheduled))
        rows = [share.row for share in frame.scheduled if share.samples]
        return Answer(ModelRunnerOutput(frame.step, rows, [[self._token_id]] * len(rows)))


class Cost(NamedTuple):
    """Median milliseconds of one decode step."""

    core: float
    replica: float


@pytest.mark.parametrize("running", [64, 256])
def test_the_overhead_of_a_step(running: int) -> None:
    cost = step_cost(running)
    print(f"\n{running} running: {cost.core:.2f} ms in the core, {cost.replica:.2f} in the replica")
    assert cost.core > 0


def step_cost(running: int) -> Cost:
    """Every request decodes from the first measured step to the last."""
    tokenizer = Tokenizer(MODEL)
    word = tokenizer.encode_content(" the")[0]
    core, texts = _core(running, word), OutputProcessor(tokenizer)
    params = SamplingParams(max_tokens=OUTPUT, ignore_eos=True)
    for number in range(running):
        prompt = [(number + place) % 600 for place in range(PROMPT)]
        request = EngineRequest(str(number), prompt, params)
        texts.add(request)
        core.add(request)
    while core.stats().generation_tokens < running * WARM_STEPS:
        texts.process(core.step())
    in_core, in_replica = [], []
    while core.has_work:
        begin = time.perf_counter()
        frame = core_messages.encode(StepOutputs(EngineCoreOutputs(core.step(), core.stats())))
        middle = time.perf_counter()
        message = core_messages.decode_from_rank(frame)
        assert isinstance(message, StepOutputs)
        texts.process(message.step.outputs)
        if len(message.step.outputs) == running:
            in_core.append(middle - begin)
            in_replica.append(time.perf_counter() - middle)
    return Cost(statistics.median(in_core) * 1000, statistics.median(in_replica) * 1000)


def _core(running: int, token_id: int) -> EngineCore:
    longest = PROMPT + OUTPUT
    limits = SchedulerConfig(running, max(2048, running), longest)
    blocks = running * -(-longest // BLOCK) + 1
    kv = KVCacheManager(blocks, BLOCK, True)
    return EngineCore(Scheduler(limits, kv, frozenset()), NoExecutor(token_id))


def main() -> None:
    for running in [int(argument) for argument in sys.argv[1:]] or [64, 256]:
        cost = step_cost(running)
        print(f"{running:4d} running  core {cost.core:6.3f} ms  replica {cost.replica:6.3f} ms")


if __name__ == "__main__":
    main()
