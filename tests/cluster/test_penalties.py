"""Penalties and biases through the whole engine: greedy answers against transformers' generate.

The oracle's processors are transformers' own for the repetition penalty and the bias, and OpenAI's
formula for the other two. The engine is disturbed in every way that could lose a count.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from cluster.config import EngineConfig
from cluster.engine.core_messages import EngineFacts
from cluster.engine.rank_main import engine_core
from cluster.model.tp_group import TPGroup
from cluster.request import EngineRequest, SamplingParams, ThinkingRule
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import Tokenizer
from cluster.worker.executor import InlineExecutor
from cluster.worker.worker import Worker
from tests.cluster.test_speculation import MODEL, Answers, always_draft, one_rank, run

NUM_TOKENS = 80
TOKENIZER = Tokenizer(MODEL)
END = TOKENIZER.think_end_id
(FIRST,) = TOKENIZER.encode_content("\n1: ")
KINDS: list[dict[str, Any]] = [
    {"presence_penalty": 1.5, "penalizes_thoughts": True},
    {"frequency_penalty": 1.0, "penalizes_thoughts": True},
    {"repetition_penalty": 1.3, "penalizes_thoughts": True},
    {"frequency_penalty": 2.0, "presence_penalty": -1.0},
    {"repetition_penalty": 0.8, "frequency_penalty": 0.3},
    {"presence_penalty": -2.0, "frequency_penalty": -0.5, "repetition_penalty": 1.1},
    {"logit_bias": {FIRST: -30.0, END: 3.0, 40: 2.5}},
    {"logit_bias": {END: 6.0}, "frequency_penalty": 0.7, "penalizes_thoughts": True},
]
QUESTIONS = ["Spell the word 'banana'.", "Spell the word 'engine'."]


@pytest.fixture(scope="module")
def requests() -> list[EngineRequest]:
    template = ChatTemplate(TOKENIZER)
    made = []
    for n, kind in enumerate(KINDS):
        prompt = template.render([Message("user", QUESTIONS[n % 2])])
        params = SamplingParams(
            max_tokens=NUM_TOKENS,
            temperature=0.0,
            ignore_eos=True,
            thinking=ThinkingRule(END),
            **kind,
        )
        made.append(EngineRequest(f"p{n}", prompt, params))
    return made


class Penalized:
    """A logits processor of one request, by the definitions."""

    def __init__(self, request: EngineRequest) -> None:
        from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

        self.params, self.prompt = request.params, request.prompt_token_ids
        self.repetition = RepetitionPenaltyLogitsProcessor(self.params.repetition_penalty)
        bias = {(token,): value for token, value in self.params.logit_bias.items()}
        self.bias = SequenceBiasLogitsProcessor(bias) if bias else None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        output = ids[0, len(self.prompt) :].tolist()
        if self.params.penalizes_thoughts or END in output:
            counted = output[0 if self.params.penalizes_thoughts else output.index(END) + 1 :]
            scores = self.repetition(torch.tensor([self.prompt + counted]), scores)
            for token in set(counted):
                scores[0, token] -= self.params.frequency_penalty * counted.count(token)
                scores[0, token] -= self.params.presence_penalty
        return scores if self.bias is None else self.bias(ids, scores)


@pytest.fixture(scope="module")
def expected(requests: list[EngineRequest]) -> dict[str, list[int]]:
    from transformers import LogitsProcessorList, Qwen2ForCausalLM

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
            logits_processor=LogitsProcessorList([Penalized(request)]),
        )
        answers[request.request_id] = ids[0, prompt.shape[1] :].tolist()
    return answers


def tokens(answers: Answers) -> dict[str, list[int]]:
    return {name: drawn for name, (drawn, _) in answers.items()}


def test_every_kind_changes_something(
    requests: list[EngineRequest], expected: dict[str, list[int]]
) -> None:
    plain = [
        msgspec.structs.replace(
            request,
            params=SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True),
        )
        for request in requests
    ]
    undisturbed = tokens(run(one_rank(speculation="off"), plain))
    assert all(undisturbed[name] != answer for name, answer in expected.items())
    assert all(END in answer for answer in expected.values()), "the scopes are told apart"


@pytest.mark.parametrize(
    "settings",
    [
        {"speculation": "off"},
        {"speculation": "off", "async_scheduling": True},
        {"speculation": "off", "num_kv_blocks": 40},
        {},
        {"num_kv_blocks": 40},
        {"max_num_batched_tokens": 20},
        {"speculation": "draft", "draft_model_path": str(MODEL)},
    ],
    ids=["plain", "ahead", "preempted", "ngram", "ngram, preempted", "chunked", "draft model"],
)
def test_penalised_answers_are_what_transformers_generates(
    settings: dict[str, Any], requests: list[EngineRequest], expected: dict[str, list[int]]
) -> None:
    core = one_rank(**settings)
    assert tokens(run(core, requests)) == expected
    if "num_kv_blocks" in settings:
        assert core.stats().preemptions > 0
    stats = core.stats()
    if settings.get("speculation") == "draft":
        assert 0 < stats.num_accepted == stats.num_drafted, "it draws under the same penalties"
    elif settings.get("speculation") is None:
        assert 0 < stats.num_accepted < stats.num_drafted


@pytest.mark.parametrize("speculation", ["off", "ngram"])
def test_two_ranks_change_each_its_own_logits(
    speculation: str,
    requests: list[EngineRequest],
    expected: dict[str, list[int]],
    ranks: Callable[[int], Any],
) -> None:
    everyone = ranks(2)

    def begin(group: TPGroup) -> Worker:
        config = EngineConfig(
            model_path=str(Path(MODEL)),
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
    assert tokens(run(core, requests)) == expected
