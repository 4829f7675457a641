"""What a step costs beside the model: schedule, frame, update, output; no model is computed.

Prints the median of a decode step in milliseconds for the core that plans, for a rank's books of
its rows, and for the replica that turns outputs into text: of plain requests, and of requests with
penalties in thoughts too, a bias, a stop string, a thinking budget and an eye on circles. Run with
`make bench`, or alone:

    python -m tests.bench.bench_step_overhead 64 256
"""

import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from cluster.batch import ModelRunnerOutput, SchedulerOutput, decode_scheduler_output, encode
from cluster.engine import core_messages
from cluster.engine.core_messages import StepOutputs
from cluster.engine.engine_core import EngineCore
from cluster.engine.kv_cache import KVCacheManager
from cluster.engine.output_processor import OutputProcessor
from cluster.engine.scheduler import Scheduler, SchedulerConfig
from cluster.request import EngineCoreOutputs, EngineRequest, SamplingParams, ThinkingRule
from cluster.text.tokenizer import Tokenizer
from cluster.worker.input_batch import InputBatch

MODEL = Path(__file__).parents[2] / "configs/models/deeprequest-demo"
PROMPT, OUTPUT, BLOCK = 128, 400, 16
WARM_STEPS = 20
TEXT = "The quick brown fox jumps over the lazy dog while seven wizards juggle numbers."


class Answer(NamedTuple):
    """A step that was computed when it was submitted."""

    computed: ModelRunnerOutput

    def result(self) -> ModelRunnerOutput:
        return self.computed


class NoExecutor:
    """Encodes each frame for the other ranks, decodes it as one of them, keeps that rank's books,
    and draws words in turn."""

    def __init__(self, words: list[int], rows: InputBatch) -> None:
        self._words = words
        self._rows = rows
        self.seconds = 0.0
        """Of the books, in the last step."""

    def submit(self, scheduled: SchedulerOutput) -> Answer:
        frame = decode_scheduler_output(encode(scheduled))
        word = self._words[frame.step % len(self._words)]
        begin = time.perf_counter()
        self._rows.apply(frame)
        rows = []
        if frame.scheduled:
            inputs = self._rows.prepare(frame.scheduled)
            self._rows.sampling(inputs)
            rows = inputs.sample_rows
        drawn = [[word]] * len(rows)
        self._rows.record(rows, drawn)
        self.seconds = time.perf_counter() - begin
        return Answer(ModelRunnerOutput(frame.step, rows, drawn))


class Cost(NamedTuple):
    """Median milliseconds of one decode step."""

    core: float
    rank: float
    replica: float

    def __str__(self) -> str:
        return f"core {self.core:.2f} ms, rank {self.rank:.2f} ms, replica {self.replica:.2f} ms"


@pytest.mark.parametrize("running", [64, 256])
@pytest.mark.parametrize("busy", [False, True])
def test_the_overhead_of_a_step(running: int, busy: bool) -> None:
    cost = step_cost(running, busy)
    print(f"\n{running} running{' with all settings' if busy else ''}: {cost}")
    assert cost.core > 0


def step_cost(running: int, busy: bool) -> Cost:
    """Every request decodes from the first measured step to the last."""
    tokenizer = Tokenizer(MODEL)
    words = tokenizer.encode_content(TEXT)
    executor = NoExecutor(words, _rows(running))
    core, texts = _core(running, executor), OutputProcessor(tokenizer)
    params = SamplingParams(max_tokens=OUTPUT, ignore_eos=True)
    if busy:
        params = _all_settings(tokenizer)
    for number in range(running):
        prompt = [(number + place) % 600 for place in range(PROMPT)]
        request = EngineRequest(str(number), prompt, params)
        texts.add(request)
        core.add(request)
    while core.stats().generation_tokens < running * WARM_STEPS:
        texts.process(core.step())
    costs = []
    while core.has_work:
        begin = time.perf_counter()
        frame = core_messages.encode(StepOutputs(EngineCoreOutputs(core.step(), core.stats())))
        middle = time.perf_counter()
        message = core_messages.decode_from_rank(frame)
        assert isinstance(message, StepOutputs)
        texts.process(message.step.outputs)
        if len(message.step.outputs) == running:
            end = time.perf_counter()
            costs.append((middle - begin - executor.seconds, executor.seconds, end - middle))
    return Cost(*(statistics.median(part) * 1000 for part in zip(*costs, strict=True)))


def _all_settings(tokenizer: Tokenizer) -> SamplingParams:
    end = tokenizer.think_end_id
    return SamplingParams(
        max_tokens=OUTPUT,
        ignore_eos=True,
        presence_penalty=0.5,
        repetition_penalty=1.1,
        penalizes_thoughts=True,
        logit_bias={5: 1.0},
        stop=("\n\nnever",),
        stops_thoughts=True,
        thinking=ThinkingRule(end, OUTPUT, (end,), breaks_loops=True),
    )


def _rows(running: int) -> InputBatch:
    return InputBatch(running, PROMPT + OUTPUT, BLOCK, (), torch.device("cpu"))


def _core(running: int, executor: NoExecutor) -> EngineCore:
    longest = PROMPT + OUTPUT
    limits = SchedulerConfig(running, max(2048, running), longest)
    blocks = running * -(-longest // BLOCK) + 1
    kv = KVCacheManager(blocks, BLOCK, True)
    return EngineCore(Scheduler(limits, kv, frozenset()), executor)


def main() -> None:
    for running in [int(argument) for argument in sys.argv[1:]] or [64, 256]:
        for busy in (False, True):
            name = "all settings" if busy else "plain"
            print(f"{running:4d} running, {name:12}  {step_cost(running, busy)}", flush=True)


if __name__ == "__main__":
    main()
