"""Speculation changes when tokens come, never which: on against off, token by token.

The oracle is the same engine without speculation; the chi-square test asks the softmax itself.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from cluster.config import EngineConfig
from cluster.engine.core_messages import EngineFacts
from cluster.engine.engine_core import EngineCore
from cluster.engine.rank_main import engine_core
from cluster.model.tp_group import TPGroup
from cluster.request import EngineRequest, SamplingParams, TokenLogprobs
from cluster.worker.executor import InlineExecutor
from cluster.worker.rejection import accept
from cluster.worker.sampler import Sampler, SamplingBatch
from cluster.worker.worker import Worker

MODEL = Path(__file__).resolve().parents[2] / "configs" / "models" / "deeprequest-demo"
NUM_TOKENS = 40

Answers = dict[str, tuple[list[int], object]]


def one_rank(**settings: Any) -> EngineCore:
    config = EngineConfig(
        **{
            "model_path": str(MODEL),
            "device": "cpu",
            "dtype": "float32",
            "block_size": 8,
            "num_kv_blocks": 1000,
            "max_num_seqs": 16,
            "load_progress": False,
            **settings,
        }
    )
    worker = Worker(config, 0, TPGroup())
    worker.load()
    worker.init_kv_cache(worker.num_kv_blocks())
    always_draft(worker)
    facts = msgspec.convert(worker.facts, EngineFacts, from_attributes=True)
    return engine_core(config, facts, InlineExecutor(worker))


def always_draft(worker: Worker) -> None:
    """Drafts wherever something is foreseen, whatever this machine's steps take today."""
    assert worker._runner is not None
    speculator = worker._runner._speculator
    if speculator is not None:
        speculator._choose = lambda num_rows, available, chances: available  # type: ignore[method-assign]
        speculator._least_chance = lambda num_rows: 0.0  # type: ignore[method-assign]


def run(core: EngineCore, requests: list[EngineRequest]) -> Answers:
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    ends: dict[str, object] = {}
    for request in requests:
        assert core.add(request) is None
    while core.has_work:
        for output in core.step():
            tokens[output.request_id] += output.new_token_ids
            ends[output.request_id] = (output.finish_reason, output.stop_reason)
            core.scheduler.check_integrity()
    return {name: (drawn, ends[name]) for name, drawn in tokens.items()}


@pytest.fixture(scope="module")
def requests() -> list[EngineRequest]:
    """Prompts that repeat themselves, with a common beginning; greedy and by chance; stop ids."""
    source = random.Random(6)
    common = [source.randrange(300) for _ in range(20)]
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.5, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 1.0},
        {"temperature": 0.7, "top_p": 1.0, "top_k": 30},
    ]
    made = []
    for n in range(12):
        phrase = [source.randrange(300) for _ in range(5)]
        params = SamplingParams(
            max_tokens=NUM_TOKENS,
            seed=n,
            stop_token_ids=tuple(range(n, 300, 40)) if n % 3 == 0 else (),
            min_tokens=15 if n % 3 == 0 else 0,
            ignore_eos=n % 2 == 0,
            logprobs=2 if n == 4 else None,
            **kinds[n % 4],
        )
        made.append(EngineRequest(f"r{n}", common + phrase * 4, params))
    return made


@pytest.fixture(scope="module")
def plain(requests: list[EngineRequest]) -> Answers:
    return run(one_rank(speculation="off"), requests)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_kv_blocks": 50},
        {"max_num_batched_tokens": 40},
        {"num_speculative_tokens": 1},
        {"speculation": "draft", "draft_model_path": str(MODEL)},
        {"speculation": "draft", "draft_model_path": str(MODEL), "num_kv_blocks": 50},
        {"speculation": "draft", "draft_model_path": str(MODEL), "max_num_batched_tokens": 40},
    ],
    ids=[
        "plain",
        "preempted",
        "chunked",
        "one ahead",
        "draft model",
        "draft model, preempted",
        "draft model, chunked",
    ],
)
def test_on_and_off_give_the_same_tokens(
    settings: dict[str, Any], requests: list[EngineRequest], plain: Answers
) -> None:
    core = one_rank(**settings)
    assert run(core, requests) == plain
    assert core.stats().num_drafted > 20
    assert 0 < core.stats().num_accepted <= core.stats().num_drafted
    if settings.get("num_kv_blocks") == 50:
        assert core.stats().preemptions > 0
    again = [msgspec.structs.replace(r, request_id=f"again-{r.request_id}") for r in requests]
    hits = core.stats().prefix_hit_tokens
    assert list(run(core, again).values()) == list(plain.values())
    assert core.stats().prefix_hit_tokens > hits


def test_a_small_model_like_the_large_one_is_nearly_always_right(
    requests: list[EngineRequest],
) -> None:
    core = one_rank(speculation="draft", draft_model_path=str(MODEL))
    run(core, [r for r in requests if not r.params.stop_token_ids])
    assert core.stats().num_accepted > 0.9 * core.stats().num_drafted


def test_a_right_prediction_takes_few_steps(requests: list[EngineRequest], plain: Answers) -> None:
    core = one_rank()
    request = requests[2]
    told = msgspec.structs.replace(request, prediction_token_ids=plain[request.request_id][0])
    assert run(core, [told]) == {request.request_id: plain[request.request_id]}
    assert core.stats().steps < NUM_TOKENS / 3


@pytest.mark.parametrize("speculation", ["off", "ngram"])
def test_two_ranks_record_the_same_drafts_and_draw_the_same_tokens(
    speculation: str, requests: list[EngineRequest], plain: Answers, ranks: Callable[[int], Any]
) -> None:
    everyone = ranks(2)

    def begin(group: TPGroup) -> Worker:
        config = EngineConfig(
            model_path=str(MODEL),
            tensor_parallel_size=2,
            device="cpu",
            dtype="float32",
            block_size=8,
            num_kv_blocks=1000,
            max_num_seqs=16,
            load_progress=False,
            speculation=speculation,  # type: ignore[arg-type]
        )
        worker = Worker(config, group.rank, group)
        worker.load()
        worker.init_kv_cache(worker.num_kv_blocks())
        always_draft(worker)
        return worker

    workers: list[Worker] = everyone.run(begin)

    class Both:
        def execute(self, frame: Any) -> Any:
            return everyone.run(lambda group: workers[group.rank].execute(frame))[0]

    facts = msgspec.convert(workers[0].facts, EngineFacts, from_attributes=True)
    core = engine_core(workers[0].config, facts, InlineExecutor(Both()))
    some = requests[:6]
    assert run(core, some) == {r.request_id: plain[r.request_id] for r in some}
    assert (core.stats().num_drafted > 20) == (speculation == "ngram")


def test_logprobs_follow_the_tokens_they_belong_to(requests: list[EngineRequest]) -> None:
    told: dict[str, list[TokenLogprobs]] = {}
    for speculation in ("off", "ngram"):
        core = one_rank(speculation=speculation)
        assert core.add(requests[4]) is None
        told[speculation] = []
        while core.has_work:
            for output in core.step():
                assert output.logprobs is not None
                assert len(output.logprobs) == len(output.new_token_ids)
                told[speculation] += output.logprobs
    for one, other in zip(told["off"], told["ngram"], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert one.top_ids == other.top_ids
        assert len(one.top_ids) == 2


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_accepted_and_rejected_drafts_leave_the_distribution_as_it_is(top_p: float) -> None:
    """Two tokens by a draft that is right about half the time: chi-square over all pairs."""
    draws, vocab = 20_000, 5
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(vocab, generator=generator)
    second = torch.randn(vocab, vocab, generator=generator)
    draft = int(first.argmax())
    logits = torch.stack((first, second[draft])).repeat(draws, 1)
    known = np.arange(draws)
    position = np.stack((known * 10, known * 10 + 1), 1).reshape(-1)
    drawn = Sampler(TPGroup(), vocab, vocab).sample(logits, batch(position, top_p))
    given = accept([[draft]] * draws, drawn.token_ids.tolist(), drawn.healthy.tolist())
    # who was rejected draws the second token in a step of its own, from its own first token
    rejected = [n for n, tokens in enumerate(given) if len(tokens) == 1]
    assert 0.2 < len(rejected) / draws < 0.8
    later = second[torch.tensor([given[n][0] for n in rejected])]
    late = Sampler(TPGroup(), vocab, vocab).sample(later, batch(known[rejected] * 10 + 1, top_p))
    for n, token in zip(rejected, late.token_ids.tolist(), strict=True):
        given[n].append(token)
    want = kept(first, top_p)[:, None] * torch.stack([kept(row, top_p) for row in second])
    counts = torch.zeros(vocab, vocab).double()
    for one, other in given:
        counts[one, other] += 1
    assert not counts[want == 0].any()
    expected = want[want > 0].double() * draws
    statistic = float(((counts[want > 0] - expected) ** 2 / expected).sum())
    freedom = int((want > 0).sum()) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def batch(position: Any, top_p: float) -> SamplingBatch:
    count, none = len(position), np.zeros(0, np.int64)
    return SamplingBatch(
        temperature=np.ones(count, np.float32),
        top_p=np.full(count, top_p, np.float32),
        min_p=np.zeros(count, np.float32),
        top_k=np.zeros(count, np.int64),
        seed=np.full(count, 11),
        position=np.asarray(position, np.int64),
        banned_rows=none,
        banned_ids=none,
    )


def kept(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """The softmax over the smallest set of the likeliest that holds top_p."""
    probabilities, order = logits.softmax(-1).sort(descending=True)
    inside = probabilities.cumsum(-1) - probabilities < top_p
    filtered = torch.zeros_like(logits)
    filtered[order[inside]] = probabilities[inside]
    return filtered / filtered.sum()
