"""How long running streams wait for their next token while a long prompt is computed beside them.

Prints the median and the 99th percentile of the gap between two tokens, undisturbed, with a target
gap, and without one; and how long the prompt waited for its first token. Run with:

    python -m tests.bench.bench_gap MODEL_DIR [streams] [prompt tokens]
"""

import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from cluster.config import EngineConfig
from cluster.engine.core_messages import EngineFacts
from cluster.engine.engine_core import EngineCore
from cluster.engine.rank_main import engine_core
from cluster.model.tp_group import TPGroup
from cluster.request import EngineRequest, SamplingParams
from cluster.worker.executor import InlineExecutor
from cluster.worker.worker import Worker

DEMO = Path(__file__).parents[2] / "configs/models/deeprequest-demo"
CALM_STEPS = 100


class Gaps(NamedTuple):
    """Milliseconds."""

    calm: list[float]
    disturbed: list[float]
    first_token: float
    calm_again: list[float]
    """Behind the prompt: the streams' own contexts have grown meanwhile."""


def test_the_gap_beside_a_long_prompt() -> None:
    for line in report(DEMO, streams=8, prompt=1_000):
        print(line)


def report(model: Path, streams: int, prompt: int) -> list[str]:
    """One line a setting; the target is one and a half times the calm gap."""
    engine = Engine(model, streams, prompt)
    free = engine.measure(None)
    target = 1.5 * statistics.median(free.calm)
    lines = []
    for bound, gaps in ((None, free), (target, engine.measure(target))):
        name = "no target" if bound is None else f"target {bound:.1f} ms"
        before, after = percentile(gaps.calm, 0.99), percentile(gaps.disturbed, 0.99)
        lines.append(
            f"{streams} streams, {prompt} tokens, {name}: calm p50 "
            f"{statistics.median(gaps.calm):.1f} p99 {before:.1f}, afterwards p50 "
            f"{statistics.median(gaps.calm_again):.1f}; disturbed p50 "
            f"{statistics.median(gaps.disturbed):.1f} p99 {after:.1f} ms = "
            f"{after / statistics.median(gaps.calm):.2f} x calm p50, {after / before:.2f} x calm "
            f"p99; first token after {gaps.first_token / 1000:.2f} s in {len(gaps.disturbed)} steps"
        )
    return lines


class Engine:
    """One worker, and a scheduler with empty books for each measurement."""

    def __init__(self, model: Path, streams: int, prompt: int) -> None:
        self._streams, self._prompt = streams, prompt
        self._config = EngineConfig(
            model_path=str(model),
            device="cpu",
            dtype=own_dtype(model),
            max_num_seqs=streams + 1,
            max_model_len=prompt + 2 * CALM_STEPS,
            kv_cache_gib=1.0,
            speculation="off",
            threads_per_rank=len(os.sched_getaffinity(0)),
            load_progress=False,
        )
        self._worker = Worker(self._config, 0, TPGroup())
        self._worker.load()
        self._worker.init_kv_cache(self._worker.num_kv_blocks())

    def measure(self, target_ms: float | None) -> Gaps:
        """Gaps of streams that run before and while a prompt is computed."""
        config = msgspec.structs.replace(self._config, target_gap_ms=target_ms)
        facts = msgspec.convert(self._worker.facts, EngineFacts, from_attributes=True)
        core = engine_core(config, facts, InlineExecutor(self._worker))
        choose = random.Random(5)
        vocabulary = facts.vocab_size // 2
        for number in range(self._streams):
            start = [choose.randrange(3, vocabulary) for _ in range(64)]
            core.add(EngineRequest(f"s{number}", start, params(self._prompt + CALM_STEPS - 64)))
        for _ in range(10):
            core.step()
        calm = [step(core)[0] for _ in range(CALM_STEPS)]
        long = [choose.randrange(3, vocabulary) for _ in range(self._prompt)]
        core.add(EngineRequest("long", long, params(1)))
        begin, disturbed, done = time.perf_counter(), [], False
        while not done:
            seconds, done = step(core)
            disturbed.append(seconds)
        first_token = (time.perf_counter() - begin) * 1000
        calm_again = [step(core)[0] for _ in range(CALM_STEPS // 2)]
        for number in range(self._streams):
            core.abort(f"s{number}")
        while core.has_work:
            core.step()
        return Gaps(calm, disturbed, first_token, calm_again)


def own_dtype(model: Path) -> Literal["auto", "bfloat16"]:
    """bfloat16 where the checkpoint is: a CPU's own choice is float32."""
    config = json.loads((model / "config.json").read_bytes())
    return "bfloat16" if config.get("torch_dtype") == "bfloat16" else "auto"


def step(core: EngineCore) -> tuple[float, bool]:
    """Milliseconds of a step, and whether the long prompt got its token."""
    begin = time.perf_counter()
    outputs = core.step()
    done = any(output.request_id == "long" for output in outputs)
    return (time.perf_counter() - begin) * 1000, done


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    model, *numbers = sys.argv[1:] or [str(DEMO)]
    streams, prompt = [*map(int, numbers), *(8, 4_000)[len(numbers) :]]
    print("\n".join(report(Path(model), streams, prompt)))


if __name__ == "__main__":
    main()
