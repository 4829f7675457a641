"""Decoding with speculation against decoding without, on the same machine in the same minutes.

    prediction   a greedy request brings its whole output as its prediction, as an edit nearly does
    echo         the demo model repeats a text of its prompt
    loop         greedy decoding of random weights, which may soon repeat itself
    random       sampled at temperature 2 from a random prompt: nothing to foresee

Both engines run in this process and take turns, round by round. Prints medians; nothing is
asserted about speed.

    python -m tests.bench.bench_speculation [--model DIR] [--dtype bfloat16] [--batches 1,8]
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from cluster.config import EngineConfig
from cluster.engine.core_messages import EngineFacts
from cluster.engine.engine_core import EngineCore
from cluster.engine.rank_main import engine_core
from cluster.model.tp_group import TPGroup
from cluster.request import EngineRequest, SamplingParams
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import Tokenizer
from cluster.worker.executor import InlineExecutor
from cluster.worker.worker import Worker

DEMO = Path(__file__).parents[2] / "configs/models/deeprequest-demo"
TEXT = "The quick brown fox jumps over the lazy dog while seven wizards juggle numbers."
PROMPT_LEN, OUTPUT_LEN = 128, 128

Workload = Callable[[EngineCore, int, int], list[EngineRequest]]


def test_speculation_on_the_demo_model() -> None:
    assert len(measured(DEMO, "float32", threads=1, batches=(1, 8), rounds=3)) == 6


def measured(
    model: Path, dtype: str, threads: int, batches: tuple[int, ...], rounds: int
) -> list[tuple[str, int, float, float]]:
    """(workload, batch, tokens per second without, with speculation), printed as they come."""
    plain, spec = (one_rank(model, dtype, threads, name) for name in ("off", "ngram"))
    workloads: dict[str, Workload] = {"prediction": predicted, "loop": loops, "random": noise}
    if model == DEMO:
        workloads = {"prediction": predicted, "echo": echoes, "random": noise}
    rows = []
    for name, workload in workloads.items():
        for batch in batches:
            rates: dict[str, list[float]] = {"off": [], "on": []}
            for number in range(rounds + 1):
                requests = workload(plain, batch, number)
                for key, core in (("off", plain), ("on", spec)):
                    tokens, seconds = decode(core, requests)
                    rates[key].append(tokens / seconds)
            off, on = (statistics.median(rate[1:]) for rate in (rates["off"], rates["on"]))
            ratio = statistics.median(b / a for a, b in zip(rates["off"], rates["on"], strict=True))
            print(f"{name:11} batch {batch:3} {off:8.0f} -> {on:8.0f} tokens/s   {ratio:5.2f} x")
            rows.append((name, batch, off, on))
    stats = spec.stats()
    print(f"drafted {stats.num_drafted}, accepted {stats.num_accepted}")
    return rows


def one_rank(model: Path, dtype: str, threads: int, speculation: str) -> EngineCore:
    """An engine core with its worker in this process."""
    settings = {
        "model_path": str(model),
        "device": "cpu",
        "dtype": dtype,
        "speculation": speculation,
        "threads_per_rank": threads,
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "enable_prefix_caching": False,
        "load_progress": False,
    }
    config = msgspec.convert(settings, EngineConfig)
    worker = Worker(config, 0, TPGroup())
    worker.load()
    worker.init_kv_cache(worker.num_kv_blocks())
    facts = msgspec.convert(worker.facts, EngineFacts, from_attributes=True)
    return engine_core(config, facts, InlineExecutor(worker))


def decode(core: EngineCore, requests: list[EngineRequest]) -> tuple[int, float]:
    """Tokens drawn behind the first of every request, and the seconds they took."""
    for request in requests:
        assert core.add(request) is None
    waiting, tokens = {request.request_id for request in requests}, 0
    while waiting:
        waiting -= {output.request_id for output in core.step()}
    started = time.perf_counter()
    while core.has_work:
        tokens += sum(len(output.new_token_ids) for output in core.step())
    return tokens, time.perf_counter() - started


def answers(core: EngineCore, requests: list[EngineRequest]) -> dict[str, list[int]]:
    drawn: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        assert core.add(request) is None
    while core.has_work:
        for output in core.step():
            drawn[output.request_id] += output.new_token_ids
    return drawn


def noise(core: EngineCore, batch: int, number: int) -> list[EngineRequest]:
    return [random_prompt(f"{number}-{row}", temperature=2.0) for row in range(batch)]


def loops(core: EngineCore, batch: int, number: int) -> list[EngineRequest]:
    return [random_prompt(f"{number}-{row}", temperature=0.0) for row in range(batch)]


def predicted(core: EngineCore, batch: int, number: int) -> list[EngineRequest]:
    requests = loops(core, batch, number)
    drawn = answers(core, requests)
    return [
        msgspec.structs.replace(request, prediction_token_ids=drawn[request.request_id])
        for request in requests
    ]


def echoes(core: EngineCore, batch: int, number: int) -> list[EngineRequest]:
    template = ChatTemplate(Tokenizer(DEMO))
    words = TEXT.split()
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_LEN)
    requests = []
    for row in range(batch):
        random.Random(number * 100 + row).shuffle(words)
        prompt = template.render([Message("user", f"Repeat after me: {' '.join(words)}")])
        requests.append(EngineRequest(f"{number}-{row}", prompt, params))
    return requests


def random_prompt(name: str, temperature: float) -> EngineRequest:
    source = random.Random(name)
    prompt = [source.randrange(256) for _ in range(PROMPT_LEN)]
    params = SamplingParams(
        temperature=temperature, top_p=1.0, max_tokens=OUTPUT_LEN, ignore_eos=True, seed=7
    )
    return EngineRequest(name, prompt, params)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    batches = tuple(int(batch) for batch in asked.batches.split(","))
    measured(asked.model, asked.dtype, asked.threads, batches, asked.rounds)


if __name__ == "__main__":
    main()
