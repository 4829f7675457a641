"""One answer, however it is computed: the demo model's tokens do not depend on the engine's load.

The oracle is transformers' Qwen2ForCausalLM in float32. Against it stand one rank in this process
under every kind of disturbance, and gangs of two and four processes under all of them at once.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from cluster.config import EngineConfig
from cluster.engine.async_engine import AsyncEngine
from cluster.engine.core_messages import EngineFacts
from cluster.engine.engine_core import EngineCore
from cluster.engine.rank_main import engine_core
from cluster.engine.rank_main import main as rank_main
from cluster.model.tp_group import TPGroup
from cluster.request import EngineRequest, EngineStats, SamplingParams
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import Tokenizer
from cluster.worker.executor import InlineExecutor
from cluster.worker.process_gang import ProcessGang
from cluster.worker.worker import Worker

MODEL = Path(__file__).resolve().parents[2] / "configs" / "models" / "deeprequest-demo"
NUM_TOKENS = 20
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
FILTERS: list[dict[str, Any]] = [
    {"top_p": 0.9, "seed": 1},
    {"top_p": 1.0, "top_k": 20, "seed": 2},
    {"top_p": 1.0, "min_p": 0.02, "seed": -3},
]
SETTINGS: dict[str, Any] = {
    "model_path": str(MODEL),
    "device": "cpu",
    "dtype": "float32",
    "block_size": 8,
    "num_kv_blocks": 1000,
    "max_num_seqs": 16,
    "load_progress": False,
}
SMALL_CHUNKS = {"max_num_batched_tokens": 40}
FEW_BLOCKS = {"num_kv_blocks": 60}
WORDS = ["strawberry", "banana", "bookkeeper", "giraffe", "noon", "tomorrow", "lantern", "zigzag"]

Answers = dict[str, list[int]]


def conversations() -> list[list[Message]]:
    short = [[Message("user", f"How many times does the letter r occur in {w}?")] for w in WORDS]
    told = Message("assistant", "</think>\n\nThere are 3.")
    long = [
        [Message("system", "Be exact. " * 12), *turns, told, Message("user", f"Spell {word}.")]
        for turns, word in zip(short, WORDS, strict=True)
    ]
    return short + long


@pytest.fixture(scope="module")
def requests() -> list[EngineRequest]:
    """16 greedy ones, some with a long common prefix, in an order that mixes them."""
    template = ChatTemplate(Tokenizer(MODEL))
    prompts = [template.render(messages) for messages in conversations()]
    return [EngineRequest(f"r{n}", prompts[n * 5 % 16], GREEDY) for n in range(16)]


@pytest.fixture(scope="module")
def seeded(requests: list[EngineRequest]) -> list[EngineRequest]:
    """Shuffled prompts, as the model is sure of its answer to every prompt that makes sense."""
    seeded = []
    for n, request in enumerate(requests):
        prompt = list(request.prompt_token_ids)
        random.Random(n).shuffle(prompt)
        params = msgspec.structs.replace(GREEDY, temperature=1.5, **FILTERS[n % 3])
        seeded.append(EngineRequest(f"s{n}", prompt, params))
    return seeded


@pytest.fixture(scope="module")
def expected(requests: list[EngineRequest]) -> Answers:
    """What transformers generates, one prompt at a time."""
    from transformers import Qwen2ForCausalLM

    torch.set_num_threads(1)
    model: Any = Qwen2ForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    answers = {}
    for request in requests:
        prompt = torch.tensor([request.prompt_token_ids])
        ids = model.generate(
            prompt,
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            attention_mask=prompt.new_ones(1, prompt.shape[1]),
        )
        answers[request.request_id] = ids[0, prompt.shape[1] :].tolist()
    return answers


def one_rank(**settings: Any) -> EngineCore:
    """An engine core with its worker in this process."""
    config = EngineConfig(**{**SETTINGS, **settings})
    worker = Worker(config, 0, TPGroup())
    worker.load()
    worker.init_kv_cache(worker.num_kv_blocks())
    facts = msgspec.convert(worker.facts, EngineFacts, from_attributes=True)
    return engine_core(config, facts, InlineExecutor(worker))


def run(core: EngineCore, requests: list[EngineRequest]) -> Answers:
    answers: Answers = {request.request_id: [] for request in requests}
    for request in requests:
        assert core.add(request) is None
    while core.has_work:
        for output in core.step():
            answers[output.request_id] += output.new_token_ids
    return answers


def alone(core: EngineCore, requests: list[EngineRequest]) -> Answers:
    answers: Answers = {}
    for request in requests:
        answers |= run(core, [request])
    return answers


@pytest.fixture(scope="module")
def plain() -> EngineCore:
    return one_rank(enable_prefix_caching=False)


def test_alone_it_is_what_transformers_generates(
    plain: EngineCore, requests: list[EngineRequest], expected: Answers
) -> None:
    assert alone(plain, requests) == expected
    assert len({tuple(answer) for answer in expected.values()}) > 8, "the prompts are told apart"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"enable_chunked_prefill": False},
        SMALL_CHUNKS,
        {"enable_chunked_prefill": False, **SMALL_CHUNKS},
    ],
    ids=["plain", "whole prompts", "small chunks", "whole prompts beyond the budget"],
)
def test_a_batch_of_16_changes_nothing(
    settings: dict[str, Any], requests: list[EngineRequest], expected: Answers
) -> None:
    assert run(one_rank(enable_prefix_caching=False, **settings), requests) == expected


def test_a_prefix_hit_changes_nothing(requests: list[EngineRequest], expected: Answers) -> None:
    core = one_rank()
    assert run(core, requests) == expected
    before = core.stats().prefix_hit_tokens
    assert run(core, requests) == expected
    assert core.stats().prefix_hit_tokens - before > sum(
        len(request.prompt_token_ids) - 9 for request in requests
    )


@pytest.mark.parametrize("caching", [False, True])
def test_a_preemption_changes_nothing(
    caching: bool, requests: list[EngineRequest], seeded: list[EngineRequest], expected: Answers
) -> None:
    core = one_rank(enable_prefix_caching=caching, **FEW_BLOCKS)
    assert run(core, requests) == expected
    assert core.stats().preemptions > 0
    assert run(core, seeded[:8]) == alone(core, seeded[:8])


def test_a_seed_gives_one_answer_alone_and_in_a_batch(
    plain: EngineCore, seeded: list[EngineRequest]
) -> None:
    seeded = seeded[:9]
    answers = alone(plain, seeded)
    assert run(plain, seeded) == answers
    greedy = [msgspec.structs.replace(request, params=GREEDY) for request in seeded]
    differing = [name for name, tokens in run(plain, greedy).items() if tokens != answers[name]]
    assert len(differing) > 5, "they are drawn"


async def gang(size: int, rounds: list[list[EngineRequest]]) -> tuple[list[Answers], EngineStats]:
    """Rounds of requests, each round at once, through a gang under every disturbance."""
    settings = {**SETTINGS, **SMALL_CHUNKS, **FEW_BLOCKS, "tensor_parallel_size": size}
    engine = AsyncEngine(
        EngineConfig(**settings), lambda specs: ProcessGang(rank_main, specs), Tokenizer(MODEL)
    )

    async def ask(request: EngineRequest, turn: int) -> list[int]:
        fresh = msgspec.structs.replace(request, request_id=f"{request.request_id}-{turn}")
        return [t async for output in engine.generate(fresh) for t in output.token_ids]

    await engine.start()
    try:
        answers = []
        for turn, requests in enumerate(rounds):
            tokens = await asyncio.gather(*(ask(request, turn) for request in requests))
            names = (request.request_id for request in requests)
            answers.append(dict(zip(names, tokens, strict=True)))
        return answers, engine.stats
    finally:
        await engine.stop()


@pytest.fixture(scope="module", params=[2, 4])
def across_ranks(
    request: pytest.FixtureRequest, requests: list[EngineRequest], seeded: list[EngineRequest]
) -> tuple[list[Answers], EngineStats]:
    return asyncio.run(gang(request.param, [requests[:1], requests + seeded[:6]]))


def test_any_number_of_ranks_gives_the_same_text(
    across_ranks: tuple[list[Answers], EngineStats],
    plain: EngineCore,
    seeded: list[EngineRequest],
    expected: Answers,
) -> None:
    (first, together), stats = across_ranks
    assert first == {"r0": expected["r0"]}
    assert together == expected | run(plain, seeded[:6])
    assert stats.preemptions > 0
    assert stats.prefix_hit_tokens > 0
