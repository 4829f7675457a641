from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.model.tp_group import TPGroup
from cluster.worker.logit_edits import Entries, LogitEdits
from cluster.worker.sampler import Sampler
from tests.cluster.worker.test_sampler import batch, mixed_batch

VOCAB = 1600


def entries(pairs: list[tuple[int, int, float]]) -> Entries:
    columns = np.array(pairs).reshape(-1, 3)
    ints = columns[:, :2].astype(np.int64)
    return Entries(ints[:, 0], ints[:, 1], columns[:, 2].astype(np.float32))


NONE = entries([])


def random_edits(rows: int) -> LogitEdits:
    """Distinct pairs within each kind; the kinds overlap."""
    source = np.random.default_rng(3)

    def some(low: float, high: float) -> Entries:
        pairs = source.choice(rows * VOCAB, 40 * rows, replace=False)
        values = source.uniform(low, high, len(pairs)).astype(np.float32)
        return Entries(pairs // VOCAB, pairs % VOCAB, values)

    return LogitEdits(some(0.5, 2.0), some(-4, 4), some(-100, 100))


def by_loop(logits: Tensor, edits: LogitEdits) -> Tensor:
    edited = logits.clone()
    for row, token, factor in zip(*edits.factors, strict=True):
        value = edited[row, token]
        edited[row, token] = value / factor if value > 0 else value * factor
    for row, token, value in zip(*edits.lowered, strict=True):
        edited[row, token] -= value
    for row, token, value in zip(*edits.raised, strict=True):
        edited[row, token] += value
    return edited


def test_edits_are_made_in_their_order_and_nowhere_else() -> None:
    logits = torch.randn(7, VOCAB, generator=torch.Generator().manual_seed(1)) * 5
    edits = random_edits(7)
    edited = logits.clone()
    edits.apply(edited, 0)
    assert torch.equal(edited, by_loop(logits, edits))


def test_ids_of_other_ranks_and_of_none_are_left_alone() -> None:
    logits = torch.zeros(1, 10)
    LogitEdits(NONE, NONE, entries([(0, 9, 1.0), (0, 20, 1.0), (0, 10, 2.0)])).apply(logits, 10)
    assert logits[0].tolist() == [2.0, *[0.0] * 9]
    LogitEdits(NONE, NONE, NONE).apply(logits, 0)
    assert logits[0, 0] == 2.0


def test_what_is_impossible_stays_impossible() -> None:
    logits = torch.full((1, 3), -torch.inf)
    edit = entries([(0, 0, 2.0), (0, 1, 2.0), (0, 2, 2.0)])
    LogitEdits(edit, edit, edit).apply(logits, 0)
    assert (logits == -torch.inf).all()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_edited_rows_draw_alike_on_every_rank_and_logprobs_are_the_models(
    size: int, ranks: Callable[[int], Any]
) -> None:
    rows = 60
    logits = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(4)) * 3
    edits, asked = random_edits(rows), mixed_batch(rows)
    told = np.where(np.arange(rows) % 2, 3, -1)
    plain, _, thought = Sampler(TPGroup(), VOCAB, VOCAB).sample(
        logits.clone(), replaced(asked, num_logprobs=told)
    )
    want, healthy, _ = Sampler(TPGroup(), VOCAB, VOCAB).sample(by_loop(logits, edits), asked)
    assert healthy.all()
    assert want.tolist() != plain.tolist()

    def draw(group: TPGroup) -> tuple[list[int], list[Any]]:
        mine = logits.chunk(group.size, -1)[group.rank].clone()
        edited = replaced(asked, num_logprobs=told, edits=edits)
        ids, _, named = Sampler(group, VOCAB, VOCAB).sample(mine, edited)
        assert named is not None
        return ids.tolist(), [one and one.top_logprobs for one in named]

    for ids, tops in ranks(size).run(draw):
        assert ids == want.tolist()
        assert tops == [one and one.top_logprobs for one in thought or []]


def replaced(asked: Any, **fields: Any) -> Any:
    return type(asked)(**{**vars(asked), **fields})


def test_a_greedy_row_with_an_edit_is_not_drawn_in_the_plain_way() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    asked = replaced(
        batch(2, temperature=0.0), edits=LogitEdits(NONE, entries([(1, 0, 1.5)]), NONE)
    )
    ids, _, _ = Sampler(TPGroup(), 3, 3).sample(logits, asked)
    assert ids.tolist() == [0, 2]
