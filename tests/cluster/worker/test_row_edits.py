"""Counts kept as tokens come against a recount of everything at every step."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.batch import StartedRow
from cluster.model.tp_group import TPGroup
from cluster.request import SamplingParams, ThinkingRule
from cluster.worker.allowed import Allowed
from cluster.worker.row_edits import CERTAIN, RowEdits
from cluster.worker.sampler import Sampler
from tests.cluster.worker.test_logit_edits import replaced
from tests.cluster.worker.test_sampler import batch

VOCAB = 24
END = 7
PENALTIES = st.fixed_dictionaries(
    {
        "presence_penalty": st.sampled_from([0.0, 0.5, -2.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.25, 2.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.5]),
        "penalizes_thoughts": st.booleans(),
        "thinking": st.sampled_from([None, ThinkingRule(END)]),
        "logit_bias": st.dictionaries(
            st.integers(0, VOCAB), st.sampled_from([-100.0, 1.5]), max_size=3
        ),
    }
)
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=12)


def started(row: int, prompt: list[int], output: list[int], params: SamplingParams) -> StartedRow:
    return StartedRow(row, prompt + output, len(prompt), [], params)


def recounted(
    logits: Tensor, prompt: list[int], output: list[int], params: SamplingParams
) -> Tensor:
    """By the definitions of the API; the repetition penalty by transformers."""
    from transformers import RepetitionPenaltyLogitsProcessor

    counted: list[int] | None = output
    if params.thinking is not None and not params.penalizes_thoughts:
        counted = output[output.index(END) + 1 :] if END in output else None
    edited = logits.clone()
    if counted is not None:
        seen = torch.tensor([prompt + counted])
        processor = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)
        if seen.numel():
            edited = processor(seen, edited[None])[0]
        for token in set(counted):
            edited[token] -= params.frequency_penalty * counted.count(token)
            edited[token] -= params.presence_penalty
    for token, bias in params.logit_bias.items():
        if token < VOCAB:
            edited[token] += bias if bias > -100 else -CERTAIN
    return edited


def edited(edits: RowEdits, rows: list[int], drafts: list[list[int]], logits: Tensor) -> Tensor:
    made = edits.edits(rows, drafts)
    result = logits.clone()
    if made is not None:
        made.apply(result, 0)
    return result


@given(
    params=st.lists(PENALTIES, min_size=2, max_size=2),
    prompts=st.lists(TOKENS.filter(bool), min_size=2, max_size=2),
    known=TOKENS,
    steps=st.lists(st.tuples(TOKENS.filter(bool), TOKENS), max_size=4),
)
@settings(deadline=None, max_examples=200)
def test_kept_counts_equal_a_recount_behind_every_draft(
    params: list[dict[str, Any]],
    prompts: list[list[int]],
    known: list[int],
    steps: list[tuple[list[int], list[int]]],
) -> None:
    asked = [SamplingParams(**fields) for fields in params]
    outputs: list[list[int]] = [list(known), []]
    edits = RowEdits()
    for row in (0, 1):
        edits.start(started(row, prompts[row], outputs[row], asked[row]))
    for drawn, draft in [*steps, ([], [])]:
        drafts = [draft, []]
        logits = torch.randn(2 + len(draft), VOCAB, generator=torch.Generator().manual_seed(2))
        found = edited(edits, [0, 1], drafts, logits)
        ahead = [outputs[0] + draft[:place] for place in range(1 + len(draft))]
        want = [recounted(logits[at], prompts[0], said, asked[0]) for at, said in enumerate(ahead)]
        want.append(recounted(logits[-1], prompts[1], outputs[1], asked[1]))
        torch.testing.assert_close(found, torch.stack(want))
        edits.record([0, 1], [drawn, draft])
        outputs[0] += drawn
        outputs[1] += draft


def test_words_that_are_forced_to_close_the_thoughts_count_as_thoughts() -> None:
    rule = ThinkingRule(END, budget=2, closing=(5, END, 6))
    edits = RowEdits()
    edits.start(started(0, [1], [8, 8, 5], SamplingParams(frequency_penalty=1.0, thinking=rule)))
    found = edited(edits, [0], [[END, 6, 4]], torch.zeros(4, VOCAB))
    assert found[:3].eq(0).all(), "penalties hold behind the last forced word"
    assert found[3].nonzero().flatten().tolist() == [4]


def test_a_row_that_left_changes_nothing_for_the_next_one() -> None:
    edits = RowEdits()
    params = SamplingParams(frequency_penalty=1.0, logit_bias={3: 5.0})
    edits.start(started(4, [1], [2], params))
    edits.release(4)
    edits.start(started(4, [1], [2], SamplingParams()))
    assert edits.edits([4], [[]]) is None
    edits.release(9)


def test_rows_without_edits_among_others_are_left_alone() -> None:
    edits = RowEdits()
    edits.start(started(2, [1], [5, 5], SamplingParams(frequency_penalty=1.0)))
    logits = torch.zeros(3, VOCAB)
    found = edited(edits, [0, 2, 1], [[], [], []], logits)
    assert found[[0, 2]].eq(0).all()
    assert found[1, 5] == -2.0


def test_thousands_of_distinct_tokens_are_counted() -> None:
    edits = RowEdits()
    edits.start(started(0, [1], [], SamplingParams(presence_penalty=1.0, frequency_penalty=0.5)))
    drawn = np.random.default_rng(1).integers(0, 3000, 5000).tolist()
    for begin in range(0, 5000, 7):
        edits.record([0], [drawn[begin : begin + 7]])
    made = edits.edits([0], [[]])
    assert made is not None
    logits = torch.zeros(1, 3000)
    made.apply(logits, 0)
    times = torch.tensor(drawn).bincount(minlength=3000)
    assert torch.equal(-logits[0], (times > 0) + 0.5 * times)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_the_highest_bias_outweighs_everything_and_leaves_a_token_to_draw(
    temperature: float,
) -> None:
    edits = RowEdits()
    edits.start(started(0, [1], [], SamplingParams(logit_bias={3: 100.0, 5: 100.0})))
    edits.start(started(1, [1], [], SamplingParams(logit_bias=dict.fromkeys(range(VOCAB), -100.0))))
    edits.start(started(2, [1], [], SamplingParams(logit_bias={0: -100.0})))
    logits = torch.zeros(3, VOCAB)
    logits[:, 0] = 60.0
    logits[0, 5] = 1.0
    for seed in range(50):
        asked = batch(3, temperature=temperature, top_p=0.9, seed=seed)
        asked = replaced(asked, edits=edits.edits([0, 1, 2], [[], [], []]))
        ids, healthy, _ = Sampler(TPGroup(), VOCAB, VOCAB).sample(logits.clone(), asked)
        assert ids[0] in (3, 5)
        assert healthy.all()
        assert ids[2] != 0


def test_no_bias_makes_a_grammar_break_or_a_row_fail() -> None:
    edits = RowEdits()
    edits.start(started(0, [1], [], SamplingParams(logit_bias={9: 100.0})))
    edits.start(started(1, [1], [], SamplingParams(logit_bias=dict.fromkeys((3, 5), -100.0))))
    bits = np.zeros((2, VOCAB), np.uint8)
    bits[:, [3, 5]] = 1
    allowed = Allowed(np.arange(2), np.packbits(bits, axis=1, bitorder="little"))
    for seed in range(20):
        asked = replaced(batch(2, seed=seed), edits=edits.edits([0, 1], [[], []]))
        logits = torch.zeros(2, VOCAB)
        ids, healthy, _ = Sampler(TPGroup(), VOCAB, VOCAB).sample(logits, asked, allowed)
        assert set(ids.tolist()) <= {3, 5}
        assert healthy.all()
