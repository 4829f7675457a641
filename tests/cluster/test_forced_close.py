"""Thoughts closed by force give the tokens that were to be expected, however they are computed.

The oracle is the same model without any rule: on the prompt, what it says are the thoughts; on the
prompt with the thoughts and the closing words behind it, what it says is the answer, as a token is
drawn by its position. Against it stand steps planned ahead, drafts, preemption, chunks, prefix
hits, two ranks and the deterministic mode.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster import thinking
from cluster.config import EngineConfig
from cluster.engine.core_messages import EngineFacts
from cluster.engine.engine_core import EngineCore
from cluster.engine.rank_main import engine_core
from cluster.model.tp_group import TPGroup
from cluster.request import (
    EngineRequest,
    FinishReason,
    ReasoningStop,
    SamplingParams,
    ThinkingRule,
    TokenLogprobs,
)
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import Tokenizer
from cluster.thinking import Thinking
from cluster.worker.executor import InlineExecutor
from cluster.worker.worker import Worker

MODEL = Path(__file__).resolve().parents[2] / "configs" / "models" / "deeprequest-demo"
TOKENIZER = Tokenizer(MODEL)
TEMPLATE = ChatTemplate(TOKENIZER)
END = TOKENIZER.think_end_id
CLOSING = (*TOKENIZER.encode_content("\nTime is up.\n"), END, *TOKENIZER.encode("\n\n"))
NUM_TOKENS = 60
BUDGETS = (0, 1, 7, 8, 20, 45, 55, None)
WORDS = ["strawberry", "banana", "bookkeeper", "giraffe"]
Answers = dict[str, tuple[list[int], object]]


@pytest.fixture(autouse=True, scope="module")
def small_circles() -> Iterator[None]:
    """Circles that a small model goes round in a few tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thinking, "MIN_ROUNDS", 2)
        patch.setattr(thinking, "MIN_CIRCLING", 6)
        patch.setattr(thinking, "LOOK_EVERY", 5)
        patch.setattr(thinking, "_ALIKE", 2)
        yield


def config(**settings: Any) -> EngineConfig:
    return EngineConfig(
        **{
            "model_path": str(MODEL),
            "device": "cpu",
            "dtype": "float32",
            "block_size": 8,
            "num_kv_blocks": 1000,
            "max_num_seqs": 16,
            "load_progress": False,
            "speculation": "off",
            **settings,
        }
    )


def ready(settings: EngineConfig, rank: int, group: TPGroup) -> Worker:
    worker = Worker(settings, rank, group)
    worker.load()
    worker.init_kv_cache(worker.num_kv_blocks())
    assert worker._runner is not None
    speculator = worker._runner._speculator
    if speculator is not None:  # drafts wherever something is foreseen
        speculator._choose = lambda num_rows, available, chances: available  # type: ignore[method-assign]
        speculator._least_chance = lambda num_rows: 0.0  # type: ignore[method-assign]
    return worker


def core_over(worker: Any, settings: EngineConfig, facts: Any) -> EngineCore:
    told = msgspec.convert(facts, EngineFacts, from_attributes=True)
    return engine_core(settings, told, InlineExecutor(worker))


def one_rank(**settings: Any) -> EngineCore:
    chosen = config(**settings)
    worker = ready(chosen, 0, TPGroup())
    return core_over(worker, chosen, worker.facts)


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


def asked(name: str, word: str, prompt: list[int] | None = None, **params: Any) -> EngineRequest:
    prompt = prompt or TEMPLATE.render([Message("user", f"How many r's are in the word '{word}'?")])
    return EngineRequest(name, prompt, SamplingParams(max_tokens=NUM_TOKENS, **params))


@pytest.fixture(scope="module")
def requests() -> list[EngineRequest]:
    made = []
    for n, budget in enumerate(BUDGETS * 2):
        circling = budget is None or n % 3 == 0
        made.append(
            asked(
                f"r{n}",
                WORDS[n % 4],
                [*range(n, n + 5)] * 4 if budget is None else None,
                temperature=0.0 if budget is None else (0.0, 1.0, 1.7)[n % 3],
                seed=n,
                ignore_eos=n % 2 == 0,
                min_tokens=12 if n % 5 == 0 else 0,
                stop_token_ids=(END,) if n in (4, 10) else (),
                thinking=ThinkingRule(END, budget, CLOSING, circling),
            )
        )
    return made


def without_rule(core: EngineCore, request: EngineRequest, said: list[int]) -> tuple[Any, Any]:
    """What follows `said` when nothing is forced."""
    params = msgspec.structs.replace(
        request.params,
        thinking=None,
        max_tokens=request.params.max_tokens - len(said),
        min_tokens=max(0, request.params.min_tokens - len(said)),
    )
    prompt = request.prompt_token_ids + said
    name = f"{request.request_id} behind {len(said)}"
    return run(core, [EngineRequest(name, prompt, params)])[name]


def expected(core: EngineCore, request: EngineRequest) -> tuple[list[int], object]:
    free, end = without_rule(core, request, [])
    follower = Thinking(request.params.thinking)
    place = 0
    while place < len(free) and follower.forced is None:
        follower.push(free[place])
        place += 1
    if follower.forced is None:
        return free, end
    said = [*free[:place], *CLOSING]
    closed = place + CLOSING.index(END) + 1
    if END in request.params.stop_token_ids and closed >= request.params.min_tokens:
        return said[:closed], (FinishReason.STOP, END)
    if len(said) >= NUM_TOKENS:
        return said[:NUM_TOKENS], (FinishReason.LENGTH, None)
    answer, end = without_rule(core, request, said)
    return said + answer, end


@pytest.fixture(scope="module")
def answers(requests: list[EngineRequest]) -> Answers:
    core = one_rank()
    return {request.request_id: expected(core, request) for request in requests}


def stop_of(request: EngineRequest, answers: Answers) -> ReasoningStop | None:
    follower = Thinking(request.params.thinking)
    for token_id in answers[request.request_id][0]:
        follower.push(token_id)
    return follower.stop


def test_the_requests_are_closed_by_all_that_closes(
    requests: list[EngineRequest], answers: Answers
) -> None:
    stops = [stop_of(request, answers) for request in requests]
    assert stops.count(ReasoningStop.BUDGET) > 6
    assert {None, ReasoningStop.LOOP} < set(stops)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"async_scheduling": True},
        {"async_scheduling": True, "num_kv_blocks": 40},
        {"max_num_batched_tokens": 40},
        {"speculation": "ngram"},
        {"speculation": "ngram", "num_kv_blocks": 40, "async_scheduling": True},
        {"speculation": "draft", "draft_model_path": str(MODEL)},
        {"deterministic": True},
    ],
    ids=str,
)
def test_a_forced_close_is_the_same_however_it_is_computed(
    settings: dict[str, Any], requests: list[EngineRequest], answers: Answers
) -> None:
    core = one_rank(**settings)
    assert run(core, requests) == answers
    stats = core.stats()
    assert ("speculation" in settings) == (stats.num_drafted > 20)
    assert (settings.get("num_kv_blocks") == 40) == (stats.preemptions > 0)
    again = [msgspec.structs.replace(r, request_id=f"again-{r.request_id}") for r in requests]
    assert list(run(core, again).values()) == list(answers.values())
    assert core.stats().prefix_hit_tokens > stats.prefix_hit_tokens


@pytest.mark.parametrize("speculation", ["off", "ngram"])
def test_two_ranks_force_the_same_tokens(
    speculation: str,
    requests: list[EngineRequest],
    answers: Answers,
    ranks: Callable[[int], Any],
) -> None:
    everyone = ranks(2)
    settings = config(tensor_parallel_size=2, speculation=speculation)
    workers: list[Worker] = everyone.run(lambda group: ready(settings, group.rank, group))

    class Both:
        def execute(self, frame: Any) -> Any:
            return everyone.run(lambda group: workers[group.rank].execute(frame))[0]

    core = core_over(Both(), settings, workers[0].facts)
    assert run(core, requests) == answers


def told(core: EngineCore, request: EngineRequest) -> tuple[list[int], list[TokenLogprobs]]:
    assert core.add(request) is None
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] = []
    while core.has_work:
        for output in core.step():
            tokens += output.new_token_ids
            logprobs += output.logprobs or []
    return tokens, logprobs


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_forced_token_is_told_with_the_model_s_own_logprob(temperature: float) -> None:
    core = one_rank()
    rule = ThinkingRule(END, 9, CLOSING)
    request = asked("r", "banana", temperature=temperature, logprobs=2, thinking=rule)
    tokens, logprobs = told(core, request)
    assert tuple(tokens[9 : 9 + len(CLOSING)]) == CLOSING
    for place in range(9, 9 + len(CLOSING)):
        params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=20)
        asks = EngineRequest(f"at {place}", request.prompt_token_ids + tokens[:place], params)
        _, (likeliest,) = told(core, asks)
        assert logprobs[place].top_ids == likeliest.top_ids[:2]
        among = dict(zip(likeliest.top_ids, likeliest.top_logprobs, strict=True))
        if tokens[place] in among:
            assert logprobs[place].logprob == pytest.approx(among[tokens[place]], abs=1e-4)
        else:
            assert logprobs[place].logprob < min(among.values())
