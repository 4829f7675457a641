"""Answers with a grammar are the same however they are computed, and always of their form.

The oracles: transformers' logits of the whole sequence with a fresh matcher's mask for greedy
rows; the plain engine for all others. Against it stand steps planned ahead, drafts, preemption,
chunks, prefix hits, two ranks and the deterministic mode.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
import torch

from cluster.config import EngineConfig
from cluster.engine.booking import GRAMMAR_ERROR
from cluster.engine.core_messages import EngineFacts
from cluster.engine.engine_core import EngineCore
from cluster.engine.rank_main import engine_core
from cluster.model.tp_group import TPGroup
from cluster.request import EngineRequest, FinishReason, SamplingParams, ThinkingRule
from cluster.text.grammar import GrammarCompiler
from cluster.text.grammar_book import GrammarBook
from cluster.text.json_grammar import json_answer
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import Tokenizer
from cluster.thinking import Thinking
from cluster.worker.executor import InlineExecutor
from cluster.worker.worker import Worker

MODEL = Path(__file__).resolve().parents[2] / "configs" / "models" / "deeprequest-demo"
TOKENIZER = Tokenizer(MODEL)
TEMPLATE = ChatTemplate(TOKENIZER)
END = TOKENIZER.think_end_id
CLOSING = (END, *TOKENIZER.encode("\n\n"))
NUM_TOKENS = 90
WORDS = ["strawberry", "banana", "bookkeeper", "giraffe"]
SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "word": {"enum": [*WORDS, "日本"]},
            "letters": {"type": "array", "items": {"enum": ["a", "r"]}, "maxItems": 2},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["word", "letters", "count"],
        "additionalProperties": False,
    },
    {"anyOf": [{"const": "no"}, {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}]},
    {
        "type": "object",
        "properties": {"text": {"type": "string", "maxLength": 8}},
        "required": ["text"],
        "additionalProperties": False,
    },
]
Answers = dict[str, tuple[list[int], object]]


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
    worker = Worker(settings, rank, group, GrammarBook(MODEL))
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
            ends[output.request_id] = output.error or output.finish_reason
            core.scheduler.check_integrity()
    return {name: (drawn, ends[name]) for name, drawn in tokens.items()}


def asked(name: str, word: str, **params: Any) -> EngineRequest:
    prompt = TEMPLATE.render([Message("user", f"How many r's are in the word '{word}'?")])
    if "thinking" not in params:
        prompt += [*TOKENIZER.encode("\n"), *CLOSING]
    return EngineRequest(name, prompt, SamplingParams(max_tokens=NUM_TOKENS, **params))


@pytest.fixture(scope="module")
def requests() -> list[EngineRequest]:
    made = []
    for n in range(15):
        thinks = {"thinking": ThinkingRule(END, 6 * n, CLOSING)} if n % 3 else {}
        grammar = json_answer(SCHEMAS[n % len(SCHEMAS)]) if n % 5 else None
        temperature = (0.0, 1.0, 0.7, 2.0)[n % 4]
        word = WORDS[n % 4]
        made.append(
            asked(f"r{n}", word, temperature=temperature, seed=n, grammar=grammar, **thinks)
        )
    return made


@pytest.fixture(scope="module")
def answers(requests: list[EngineRequest]) -> Answers:
    return run(one_rank(), requests)


def answer_begin(request: EngineRequest, tokens: list[int]) -> int:
    """How many tokens the thoughts and what was forced behind them take."""
    follower = Thinking(request.params.thinking)
    place = 0
    while place < len(tokens) and not follower.answering:
        follower.push(tokens[place])
        place += 1
    return place


def test_finished_answers_are_of_their_form_and_nothing_else_is_touched(
    requests: list[EngineRequest], answers: Answers
) -> None:
    finished = 0
    for n, request in enumerate(requests):
        tokens, reason = answers[request.request_id]
        if request.params.grammar is None or reason is not FinishReason.STOP:
            continue
        answer = tokens[answer_begin(request, tokens) : -1]
        value = json.loads(TOKENIZER.decode(answer))
        jsonschema.validate(value, SCHEMAS[n % len(SCHEMAS)])
        finished += 1
    assert finished >= 9
    free = [request for request in requests if request.params.grammar is None]
    alone = run(one_rank(), free)
    assert alone == {request.request_id: answers[request.request_id] for request in free}


def test_greedy_answers_take_the_likeliest_of_what_is_allowed(
    oracle: Callable[[Path], Any], requests: list[EngineRequest], answers: Answers
) -> None:
    compiler = GrammarCompiler(TOKENIZER)
    greedy = [r for r in requests if r.params.temperature == 0 and r.params.grammar]
    assert len(greedy) >= 2
    for request in greedy:
        tokens, _ = answers[request.request_id]
        assert request.params.grammar is not None
        matcher = compiler.matcher(request.params.grammar)
        with torch.inference_mode():
            ids = torch.tensor([request.prompt_token_ids + tokens])
            logits = oracle(MODEL)(ids).logits[0, len(request.prompt_token_ids) - 1 : -1]
        for place in range(answer_begin(request, tokens), len(tokens)):
            mask = np.frombuffer(matcher.mask(), np.uint8)
            bits = np.unpackbits(mask, bitorder="little").astype(np.bool_)[: logits.shape[1]]
            best = np.where(bits, logits[place, : len(bits)].numpy(), -np.inf).argmax()
            assert tokens[place] == best
            matcher.push(tokens[place])


@pytest.mark.parametrize(
    "settings",
    [
        {"async_scheduling": True},
        {"async_scheduling": True, "num_kv_blocks": 50},
        {"max_num_batched_tokens": 40},
        {"speculation": "ngram"},
        {"speculation": "ngram", "num_kv_blocks": 50, "async_scheduling": True},
        {"speculation": "draft", "draft_model_path": str(MODEL)},
        {"deterministic": True},
    ],
    ids=str,
)
def test_a_constrained_answer_is_the_same_however_it_is_computed(
    settings: dict[str, Any], requests: list[EngineRequest], answers: Answers
) -> None:
    core = one_rank(**settings)
    assert run(core, requests) == answers
    stats = core.stats()
    assert ("speculation" in settings) == (stats.num_drafted > 20)
    assert (settings.get("num_kv_blocks") == 50) == (stats.preemptions > 0)
    again = [msgspec.structs.replace(r, request_id=f"again-{r.request_id}") for r in requests]
    assert list(run(core, again).values()) == list(answers.values())
    assert core.stats().prefix_hit_tokens > stats.prefix_hit_tokens


@pytest.mark.parametrize("speculation", ["off", "ngram"])
def test_two_ranks_draw_the_same_constrained_tokens(
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


@pytest.mark.parametrize("speculation", ["off", "ngram"])
def test_a_grammar_that_cannot_be_followed_ends_its_request_alone(speculation: str) -> None:
    core = one_rank(speculation=speculation)
    good = json_answer(SCHEMAS[1])
    endless = json_answer({"$ref": "#"})
    together = [
        asked("good", "banana", grammar=good),
        asked("bad", "banana", grammar=json_answer({"not": {}})),
        asked("endless", "banana", grammar=endless),
        asked("free", "banana"),
    ]
    ends = run(core, together)
    assert ends["bad"] == ([], GRAMMAR_ERROR)
    assert ends["endless"][1] == GRAMMAR_ERROR
    alone = run(one_rank(), [together[0], together[3]])
    assert alone == {name: ends[name] for name in ("good", "free")}
