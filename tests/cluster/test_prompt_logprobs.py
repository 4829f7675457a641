"""What the model thought of a prompt's own tokens, against transformers' log_softmax.

The engine is disturbed in every way that could hide, repeat or lose a token: a prefix that the
cache holds, chunks, preemptions, neighbours, several ranks, logits that do not fit at once.
"""

import math
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
from cluster.request import EngineRequest, FinishReason, SamplingParams, TokenLogprobs
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import Tokenizer
from cluster.worker import model_runner
from cluster.worker.executor import InlineExecutor
from cluster.worker.worker import Worker
from tests.cluster.test_speculation import MODEL, one_rank

TOKENIZER = Tokenizer(MODEL)
TOLERANCE = 2e-4
NAMED = [0, 1, 5, 20]

Thoughts = dict[str, list[TokenLogprobs]]


@pytest.fixture(scope="module")
def requests() -> list[EngineRequest]:
    """Prompts with a common beginning, some likely and some not, and a neighbour that asks not."""
    question = Message("user", "How many times does the letter r occur in lantern?")
    common = ChatTemplate(TOKENIZER).render([question])
    made = []
    for n in range(8):
        prompt = common + TOKENIZER.encode_content("Let me spell it: l-a-n-t-e-r-n. " * (n + 1))
        if n % 2:
            random.Random(n).shuffle(prompt)
        asked = None if n == 6 else NAMED[n % 4]
        params = SamplingParams(max_tokens=n % 3, temperature=0.0, prompt_logprobs=asked)
        made.append(EngineRequest(f"j{n}", prompt, params))
    return made


@pytest.fixture(scope="module")
def expected(requests: list[EngineRequest]) -> dict[str, torch.Tensor]:
    """Per request: [T - 1, V], logarithmic probabilities of what may follow each token but the
    last."""
    from transformers import Qwen2ForCausalLM

    torch.set_num_threads(1)
    model: Any = Qwen2ForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    oracle = {}
    with torch.inference_mode():
        for request in requests:
            logits = model(torch.tensor([request.prompt_token_ids])).logits[0, :-1]
            oracle[request.request_id] = logits[:, : TOKENIZER.size].log_softmax(-1)
    return oracle


def thoughts(core: EngineCore, requests: list[EngineRequest]) -> Thoughts:
    """What was told of the prompts, and that it came before anything that was generated."""
    told: Thoughts = {request.request_id: [] for request in requests}
    drawn = dict.fromkeys(told, 0)
    most = {request.request_id: request.params.max_tokens for request in requests}
    for request in requests:
        assert core.add(request) is None
    while core.has_work:
        for output in core.step():
            assert not (output.prompt_logprobs and drawn[output.request_id])
            told[output.request_id] += output.prompt_logprobs or []
            drawn[output.request_id] += len(output.new_token_ids)
            if output.finish_reason is FinishReason.LENGTH:
                assert drawn[output.request_id] == most[output.request_id]
            core.scheduler.check_integrity()
    return told


def hold(told: Thoughts, requests: list[EngineRequest], expected: dict[str, torch.Tensor]) -> None:
    for request in requests:
        found, named = told[request.request_id], request.params.prompt_logprobs
        if named is None:
            assert found == []
            continue
        truth = expected[request.request_id]
        assert len(found) == len(truth)
        for one, row, token_id in zip(found, truth, request.prompt_token_ids[1:], strict=True):
            assert one.logprob == pytest.approx(row[token_id].item(), abs=TOLERANCE)
            best = row.topk(named).values.tolist() if named else []
            assert one.top_logprobs == pytest.approx(best, abs=TOLERANCE)
            assert row[one.top_ids].tolist() == pytest.approx(best, abs=TOLERANCE)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 20},
        {"async_scheduling": True, "max_num_batched_tokens": 20},
        {"speculation": "draft", "draft_model_path": str(MODEL)},
    ],
    ids=["plain", "whole prompts", "ahead, chunked", "draft model"],
)
def test_a_prompts_logprobs_are_those_of_transformers(
    settings: dict[str, Any], requests: list[EngineRequest], expected: dict[str, torch.Tensor]
) -> None:
    core = one_rank(**settings)
    hold(thoughts(core, requests), requests, expected)
    # all of the prefixes are in the cache now
    hold(thoughts(core, requests), requests, expected)


def test_who_does_not_ask_finds_what_the_asking_computed(requests: list[EngineRequest]) -> None:
    core = one_rank()
    thoughts(core, requests[:1])
    assert core.stats().prefix_hit_tokens == 0
    thoughts(core, requests[:1])
    assert core.stats().prefix_hit_tokens == 0
    quiet = msgspec.structs.replace(requests[0], params=SamplingParams(max_tokens=1))
    thoughts(core, [quiet])
    assert core.stats().prefix_hit_tokens >= len(quiet.prompt_token_ids) - 9


def test_a_preempted_prompt_is_told_once(
    requests: list[EngineRequest], expected: dict[str, torch.Tensor]
) -> None:
    core = one_rank(num_kv_blocks=60, max_num_batched_tokens=20)
    busy = [
        msgspec.structs.replace(
            request, params=msgspec.structs.replace(request.params, max_tokens=60, ignore_eos=True)
        )
        for request in requests
    ]
    hold(thoughts(core, busy), busy, expected)
    assert core.stats().preemptions > 0


def test_logits_are_made_a_few_rows_at_a_time(
    requests: list[EngineRequest],
    expected: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = one_rank()
    sampler = core.executor._worker._runner._sampler  # type: ignore[attr-defined]
    made: list[int] = []
    judge = sampler.judge

    def judged(logits: torch.Tensor, *rest: Any) -> list[TokenLogprobs]:
        made.append(len(logits))
        told: list[TokenLogprobs] = judge(logits, *rest)
        return told

    monkeypatch.setattr(model_runner, "MAX_JUDGED_LOGITS", 7 * sampler.local_vocab)
    monkeypatch.setattr(sampler, "judge", judged)
    hold(thoughts(core, requests[:4]), requests[:4], expected)
    assert max(made) == 7
    assert sum(made) == sum(len(request.prompt_token_ids) - 1 for request in requests[:4])


def ranks_of(everyone: Any, size: int) -> tuple[EngineCore, list[Worker]]:
    def begin(group: TPGroup) -> Worker:
        config = EngineConfig(
            model_path=str(Path(MODEL)),
            tensor_parallel_size=size,
            device="cpu",
            dtype="float32",
            block_size=8,
            num_kv_blocks=1000,
            max_num_seqs=16,
            max_num_batched_tokens=50,
            load_progress=False,
        )
        worker = Worker(config, group.rank, group)
        worker.load()
        worker.init_kv_cache(worker.num_kv_blocks())
        return worker

    workers: list[Worker] = everyone.run(begin)

    class All:
        def execute(self, frame: Any) -> Any:
            return everyone.run(lambda group: workers[group.rank].execute(frame))[0]

    facts = msgspec.convert(workers[0].facts, EngineFacts, from_attributes=True)
    return engine_core(workers[0].config, facts, InlineExecutor(All())), workers


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_with_slices_of_the_vocabulary_think_as_one(
    size: int,
    requests: list[EngineRequest],
    expected: dict[str, torch.Tensor],
    ranks: Callable[[int], Any],
) -> None:
    core, _ = ranks_of(ranks(size), size)
    hold(thoughts(core, requests), requests, expected)


@pytest.mark.parametrize("size", [1, 2])
def test_a_prompt_whose_numbers_break_in_the_middle_fails_alone(
    size: int,
    requests: list[EngineRequest],
    ranks: Callable[[int], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core, workers = ranks_of(ranks(size), size)
    broken, healthy = requests[0], requests[4]
    assert workers[0]._runner is not None
    decoder = type(workers[0]._runner._model)
    forward = decoder.__call__

    def spoilt(self: Any, token_ids: Any, *given: Any) -> Any:
        hidden = forward(self, token_ids, *given)
        hidden[-10] = math.nan
        return hidden

    monkeypatch.setattr(decoder, "__call__", spoilt)
    ends = {}
    for request in (broken, healthy):
        assert core.add(request) is None
        while core.has_work:
            for output in core.step():
                ends[output.request_id] = output.finish_reason
            monkeypatch.undo()
    assert ends == {broken.request_id: FinishReason.ERROR, healthy.request_id: FinishReason.LENGTH}


def test_what_is_told_is_a_probability(requests: list[EngineRequest]) -> None:
    told = thoughts(one_rank(), requests)
    for one in (one for found in told.values() for one in found):
        assert one.logprob <= 1e-6
        assert np.exp(one.top_logprobs).sum() <= 1 + 1e-5
        assert one.top_logprobs == sorted(one.top_logprobs, reverse=True)
