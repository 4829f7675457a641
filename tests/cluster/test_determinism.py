"""`deterministic: true`: a request's tokens and the bits of its logprobs depend on nothing else.

The oracle is the same request alone, on one rank, without speculation. Everything is served by the
compiled kernels in bfloat16, where any other order of adding would show in the last bits.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.attention.native import NativeAttention
from cluster.config import EngineConfig
from cluster.engine.core_messages import EngineFacts
from cluster.engine.engine_core import EngineCore
from cluster.engine.rank_main import engine_core
from cluster.kernels import native
from cluster.model.tp_group import TPGroup
from cluster.request import EngineRequest, SamplingParams
from cluster.worker.executor import InlineExecutor
from cluster.worker.worker import Worker

MODEL = Path(__file__).resolve().parents[2] / "configs" / "models" / "deeprequest-demo"
NUM_TOKENS = 24
SETTINGS: dict[str, Any] = {
    "model_path": str(MODEL),
    "device": "cpu",
    "dtype": "bfloat16",
    "kernels": "native",
    "deterministic": True,
    "block_size": 8,
    "num_kv_blocks": 1000,
    "max_num_seqs": 16,
    "load_progress": False,
    "speculation": "off",
}
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.5, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 0.7, "top_p": 1.0, "top_k": 30},
]

Answers = dict[str, tuple[list[int], list[tuple[str, list[int], list[str]]]]]
"""Of each request: tokens; and its logprobs, the drawn token's and the named ones', as exact
hexadecimal floats."""

pytestmark = pytest.mark.skipif(
    native.load()[0] is None, reason=f"the compiled kernels are {native.load()[1]}"
)


@pytest.fixture(scope="module")
def requests() -> list[EngineRequest]:
    """Nine prompts of many lengths with a common beginning, greedy and by chance."""
    source = random.Random(9)
    common = [source.randrange(300) for _ in range(20)]
    made = []
    for n in range(9):
        phrase = [source.randrange(300) for _ in range(5 + n)]
        params = SamplingParams(
            max_tokens=NUM_TOKENS, seed=n, ignore_eos=True, logprobs=3, **KINDS[n % 4]
        )
        made.append(EngineRequest(f"r{n}", common + phrase * 4, params))
    return made


def always_draft(worker: Worker) -> None:
    """Drafts wherever something is foreseen, whatever this machine's steps take today."""
    assert worker._runner is not None
    speculator = worker._runner._speculator
    if speculator is not None:
        speculator._choose = lambda num_rows, available, chances: available  # type: ignore[method-assign]
        speculator._least_chance = lambda num_rows: 0.0  # type: ignore[method-assign]


def begin(group: TPGroup, settings: dict[str, Any]) -> Worker:
    config = EngineConfig(**{**SETTINGS, **settings, "tensor_parallel_size": group.size})
    worker = Worker(config, group.rank, group)
    worker.load()
    worker.init_kv_cache(worker.num_kv_blocks())
    always_draft(worker)
    return worker


def one_rank(**settings: Any) -> EngineCore:
    worker = begin(TPGroup(), settings)
    assert isinstance(worker._backend, NativeAttention)
    facts = msgspec.convert(worker.facts, EngineFacts, from_attributes=True)
    return engine_core(worker.config, facts, InlineExecutor(worker))


def two_ranks(ranks: Callable[[int], Any], **settings: Any) -> EngineCore:
    everyone = ranks(2)
    workers: list[Worker] = everyone.run(lambda group: begin(group, settings))

    class Both:
        def execute(self, frame: Any) -> Any:
            return everyone.run(lambda group: workers[group.rank].execute(frame))[0]

    facts = msgspec.convert(workers[0].facts, EngineFacts, from_attributes=True)
    return engine_core(workers[0].config, facts, InlineExecutor(Both()))


def run(core: EngineCore, requests: list[EngineRequest]) -> Answers:
    answers: Answers = {request.request_id: ([], []) for request in requests}
    for request in requests:
        assert core.add(request) is None
    while core.has_work:
        for output in core.step():
            tokens, logprobs = answers[output.request_id]
            tokens += output.new_token_ids
            for told in output.logprobs or ():
                named = [value.hex() for value in told.top_logprobs]
                logprobs.append((told.logprob.hex(), told.top_ids, named))
    return answers


@pytest.fixture(scope="module")
def alone(requests: list[EngineRequest]) -> Answers:
    """One after the other."""
    core = one_rank(enable_prefix_caching=False)
    answers: Answers = {}
    for request in requests:
        answers |= run(core, [request])
    assert len({tuple(tokens) for tokens, _ in answers.values()}) > 6, "they are told apart"
    assert all(len(logprobs) == NUM_TOKENS for _, logprobs in answers.values())
    return answers


@pytest.mark.parametrize("speculation", ["off", "ngram"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 37},
        {"num_kv_blocks": 48},
        {"block_size": 16},
        {"threads_per_rank": 2},
    ],
    ids=["in a batch", "in other chunks", "preempted", "in other pages", "on more threads"],
)
def test_one_rank_gives_the_same_bits(
    settings: dict[str, Any], speculation: str, requests: list[EngineRequest], alone: Answers
) -> None:
    core = one_rank(speculation=speculation, **settings)
    assert run(core, requests) == alone
    if "num_kv_blocks" in settings:
        assert core.stats().preemptions > 0
    assert (core.stats().num_drafted > 20) == (speculation == "ngram")


def test_a_prefix_hit_gives_the_same_bits(requests: list[EngineRequest], alone: Answers) -> None:
    core = one_rank()
    run(core, requests)
    before = core.stats().prefix_hit_tokens
    assert run(core, requests) == alone
    assert core.stats().prefix_hit_tokens - before > 20 * len(requests)


@pytest.mark.parametrize("speculation", ["off", "ngram"])
def test_two_ranks_give_the_same_bits(
    speculation: str, requests: list[EngineRequest], alone: Answers, ranks: Callable[[int], Any]
) -> None:
    core = two_ranks(ranks, speculation=speculation, num_kv_blocks=48, max_num_batched_tokens=37)
    assert run(core, requests) == alone
    assert core.stats().preemptions > 0
    assert core.stats().prefix_hit_tokens > 0


@pytest.mark.parametrize("kind", [{"quantization": "int8"}, {"dtype": "float32"}], ids=str)
def test_other_matrices_give_the_same_bits(
    kind: dict[str, Any], requests: list[EngineRequest], ranks: Callable[[int], Any]
) -> None:
    extension = native.load()[0]
    if "quantization" in kind and not extension.int8_variants():
        pytest.skip("this CPU lacks the 8-bit dot product")
    core = one_rank(enable_prefix_caching=False, **kind)
    alone: Answers = {}
    for request in requests[:5]:
        alone |= run(core, [request])
    few = two_ranks(ranks, **kind, num_kv_blocks=48, max_num_batched_tokens=37)
    assert run(few, requests[:5]) == alone


def test_untied_heads_and_odd_sizes_give_the_same_bits(
    write_checkpoint: Callable[..., Path], tmp_path: Path, ranks: Callable[[int], Any]
) -> None:
    path = write_checkpoint(tmp_path, intermediate_size=72, num_hidden_layers=3)
    source = random.Random(4)
    requests = []
    for n in range(5):
        prompt = [source.randrange(4, 160) for _ in range(9 + 7 * n)]
        params = SamplingParams(max_tokens=8, seed=n, ignore_eos=True, logprobs=2, **KINDS[n % 4])
        requests.append(EngineRequest(f"r{n}", prompt, params))
    core = one_rank(model_path=str(path), enable_prefix_caching=False)
    alone: Answers = {}
    for request in requests:
        alone |= run(core, [request])
    other = two_ranks(ranks, model_path=str(path), max_num_batched_tokens=19)
    assert run(other, requests) == alone


def test_nothing_is_chosen_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that measured might compute differently from each other, or tomorrow."""

    def refuse(*args: Any) -> float:
        raise AssertionError("a choice was measured")

    monkeypatch.setattr("cluster.kernels.selection._seconds", refuse)
    monkeypatch.setattr("cluster.attention.selection._seconds", refuse)
    first, second = (Worker(EngineConfig(**SETTINGS), 0, TPGroup()) for _ in range(2))
    assert first._kernels.describe() == second._kernels.describe()


def test_without_the_mode_the_two_ranks_may_add_differently(
    requests: list[EngineRequest], alone: Answers, ranks: Callable[[int], Any]
) -> None:
    """The bits compared here do tell orders of adding apart."""
    core = two_ranks(ranks, deterministic=False)
    assert run(core, requests) != alone
