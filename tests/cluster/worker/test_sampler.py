import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.model.tp_group import TPGroup
from cluster.worker import sampler as sampler_module
from cluster.worker.noise import gumbel, row_keys, uniform
from cluster.worker.sampler import Sampler, SamplingBatch

DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, "seed": 0, "position": 0}
KINDS = {
    "temperature": np.float32,
    "top_p": np.float32,
    "min_p": np.float32,
    "top_k": np.int64,
    "seed": np.int64,
    "position": np.int64,
}


def batch(rows: int, banned: tuple[tuple[int, int], ...] = (), **columns: Any) -> SamplingBatch:
    """Columns are values for all rows or lists with one value per row."""
    arrays: dict[str, Any] = {
        name: np.broadcast_to(np.array(columns.get(name, value), KINDS[name]), (rows,)).copy()
        for name, value in DEFAULTS.items()
    }
    pairs = np.array(banned, np.int64).reshape(-1, 2)
    return SamplingBatch(**arrays, banned_rows=pairs[:, 0], banned_ids=pairs[:, 1])


def sample(logits: Tensor, asked: SamplingBatch, real: int | None = None) -> list[int]:
    vocab = logits.shape[1]
    ids, healthy, _ = Sampler(TPGroup(), vocab, real or vocab).sample(logits.clone(), asked)
    assert healthy.all()
    drawn: list[int] = ids.tolist()
    return drawn


def kept_probabilities(
    logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> Tensor:
    """The filters one after the other, each on the softmax of what the one before it left."""
    logits = logits.double() / temperature
    if top_k:
        logits = logits.masked_fill(
            logits < logits.topk(min(top_k, len(logits))).values[-1], -math.inf
        )
    if top_p < 1:
        probabilities, order = logits.softmax(-1).sort(descending=True)
        outside = probabilities.cumsum(-1) - probabilities >= top_p
        logits[order[outside]] = -math.inf
    probabilities = logits.softmax(-1)
    logits = logits.masked_fill(probabilities < min_p * probabilities.max(), -math.inf)
    return logits.softmax(-1)


def test_greedy_takes_the_highest_and_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 1.0, 2.0, -1.0], [-2.0, -3.0, -4.0, -1.0]])
    assert sample(logits, batch(3, temperature=0.0)) == [1, 0, 3]
    assert sample(logits, batch(3, temperature=1e-30, top_p=0.5)) == [1, 0, 3]


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_p": 0.9},
        {"top_k": 5},
        {"top_k": 1},
        {"min_p": 0.2},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 1.3},
        {"top_k": 1000, "top_p": 0.999},
        {"top_p": 0.9, "temperature": 2.0, "min_p": 0.01},
        {"top_p": 0.3, "temperature": 2.0},
    ],
    ids=str,
)
def test_draws_have_the_distribution_of_the_filtered_softmax(settings_: dict[str, Any]) -> None:
    draws, vocab = 20_000, 40
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(1)) * 2
    values = {**DEFAULTS, **settings_}
    want = kept_probabilities(
        logits, values["temperature"], values["top_k"], values["top_p"], values["min_p"]
    )
    asked = batch(draws, **settings_, seed=17, position=list(range(draws)))
    counts = torch.tensor(sample(logits.expand(draws, -1), asked)).bincount(minlength=vocab)
    assert not counts[want == 0].any()
    # chi-square, rare ids in one cell; the bound is about the 0.1 % quantile (Wilson-Hilferty)
    common = want * draws >= 8
    observed = torch.cat((counts[common], counts[~common].sum()[None])).double()
    expected = torch.cat((want[common], want[~common].sum()[None])) * draws
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = len(observed) - 1
    if freedom:
        chi_square = ((observed - expected) ** 2 / expected).sum()
        bound = freedom * (1 - 2 / (9 * freedom) + 3.1 * math.sqrt(2 / (9 * freedom))) ** 3
        assert chi_square < bound


def mixed_batch(rows: int) -> SamplingBatch:
    generator = np.random.default_rng(2)
    return batch(
        rows,
        temperature=generator.choice([0.0, 0.6, 1.0, 2.0], rows),
        top_p=generator.choice([0.3, 0.95, 1.0], rows),
        top_k=generator.choice([0, 0, 3, 70, 300], rows),
        min_p=generator.choice([0.0, 0.0, 0.1], rows),
        seed=generator.integers(-(2**63), 2**63 - 1, rows),
        position=generator.integers(0, 5000, rows),
        banned=tuple((row, row) for row in range(0, rows, 3)),
    )


@pytest.mark.parametrize("spread", [0.1, 3.0])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_draw_what_one_rank_draws(
    size: int, spread: float, ranks: Callable[[int], Any]
) -> None:
    rows, vocab = 120, 4 * 400
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(4)) * spread
    asked = mixed_batch(rows)
    want = sample(logits, asked, real=vocab - 500)
    assert max(want) < vocab - 500
    assert all(want[row] != row for row in range(0, rows, 3))

    def draw(group: TPGroup) -> tuple[list[int], bool]:
        mine = logits.chunk(group.size, -1)[group.rank].clone()
        ids, healthy, _ = Sampler(group, vocab, vocab - 500).sample(mine, asked)
        return ids.tolist(), bool(healthy.all())

    assert ranks(size).run(draw) == [(want, True)] * size


def test_a_row_draws_the_same_alone_and_in_any_batch() -> None:
    rows = 60
    logits = torch.randn(rows, 300, generator=torch.Generator().manual_seed(4)) * 2
    asked = mixed_batch(rows)
    together = sample(logits, asked)
    for row in range(rows):
        fields = {name: getattr(asked, name)[[row]] for name in KINDS}
        alone = batch(1, banned=((0, row),) if row % 3 == 0 else (), **fields)
        assert sample(logits[[row]], alone) == [together[row]]


def by_definition(logits: Tensor, asked: SamplingBatch, row: int, offered: int) -> int:
    """Gumbel-max over a kept set that fits the offer, else the inverse distribution function."""
    temperature = float(asked.temperature[row])
    if temperature < 1e-5:
        return int(logits[row].argmax())
    scaled = (logits[row] / temperature).double()
    top_k, top_p = int(asked.top_k[row]), float(asked.top_p[row])
    min_p = float(asked.min_p[row])
    kept = kept_probabilities(logits[row], temperature, top_k, top_p, min_p) > 0
    key = row_keys(asked.seed[[row]], asked.position[[row]])
    descending = scaled.sort(descending=True).values
    complete = (
        len(scaled) if offered >= len(scaled) else int((scaled > descending[offered - 1]).sum())
    )
    limited = top_p < 1 or min_p > 0
    if top_k or (limited and (kept.sum() < complete or complete == len(scaled))):
        scores = scaled + torch.from_numpy(gumbel(key, np.arange(len(scaled))))[0]
        return int(scores.masked_fill(~kept, -math.inf).argmax())
    probabilities = scaled.softmax(-1)
    eligible = scaled >= scaled.max() + (math.log(min_p) if min_p else -math.inf)
    for attempt in range(50):
        running = probabilities.masked_fill(~eligible, 0).cumsum(-1)
        token = int((running <= float(uniform(key, attempt)[0, 0]) * running[-1]).sum())
        if kept[token]:
            return token
        eligible &= scaled > scaled[token]
    raise AssertionError("nothing was accepted")


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.02, 0.5, 2.0, 8.0]),
    st.sampled_from([30, 64, 65, 704]),
    st.sampled_from([2, 8, 64]),
)
def test_draws_follow_the_written_rules(
    number: int, spread: float, vocab: int, offered: int
) -> None:
    generator = torch.Generator().manual_seed(number)
    logits = torch.randn(6, vocab, generator=generator) * spread
    random = np.random.default_rng(number)
    asked = batch(
        6,
        temperature=random.choice([0.0, 0.3, 1.0, 2.0], 6),
        top_p=random.choice([0.1, 0.5, 0.95, 1.0], 6),
        top_k=random.choice([0, 0, 1, 9, 63, 64, 600], 6),
        min_p=random.choice([0.0, 0.0, 0.3], 6),
        seed=random.integers(-(2**63), 2**63 - 1, 6),
        position=random.integers(0, 9, 6),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "OFFERED", offered)
        drawn = sample(logits, asked)
    assert drawn == [by_definition(logits, asked, row, offered) for row in range(6)]


def test_equal_logits_are_drawn_evenly_and_a_top_k_keeps_all_equals() -> None:
    draws = 4000
    logits = torch.zeros(draws, 300)
    asked = batch(draws, top_k=2, seed=list(range(draws)))
    counts = torch.tensor(sample(logits, asked)).bincount(minlength=300)
    assert counts.min() > 0


def test_ids_without_a_token_and_banned_ids_are_never_drawn() -> None:
    logits = torch.zeros(500, 20)
    logits[:, 15:] = 50.0
    for top_p in (0.9, 1.0):
        asked = batch(
            500, banned=tuple((row, 3) for row in range(250)), top_p=top_p, seed=range(500)
        )
        drawn = sample(logits, asked, real=15)
        assert max(drawn) < 15
        assert 3 not in drawn[:250]
        assert 3 in drawn[250:]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_rows_with_broken_logits_are_reported_and_their_neighbours_are_not(
    size: int, poison: float, ranks: Callable[[int], Any]
) -> None:
    logits = torch.randn(6, 256, generator=torch.Generator().manual_seed(4))
    asked = batch(6, temperature=[0, 1, 1, 0, 1, 1], top_p=[1, 1, 0.9, 1, 1, 0.9])
    want = sample(logits, asked)
    broken = logits.clone()
    broken[:3, 200] = poison

    def draw(group: TPGroup) -> tuple[list[int], list[bool]]:
        mine = broken.chunk(group.size, -1)[group.rank].clone()
        ids, healthy, _ = Sampler(group, 256, 256).sample(mine, asked)
        return ids.tolist()[3:], healthy.tolist()

    assert ranks(size).run(draw) == [(want[3:], [False] * 3 + [True] * 3)] * size


def test_a_row_with_nothing_left_to_draw_is_reported() -> None:
    banned = tuple((row, token) for row in range(3) for token in range(4))
    asked = batch(3, banned=banned, temperature=[0, 1, 1], top_p=[1, 1, 0.5])
    _, healthy, _ = Sampler(TPGroup(), 4, 4).sample(torch.randn(3, 4), asked)
    assert healthy.tolist() == [False] * 3


def test_bfloat16_logits_are_drawn_in_float32() -> None:
    logits = torch.randn(4, 50).bfloat16()
    asked = batch(4, top_p=0.9, seed=[1, 2, 3, 4])
    assert sample(logits, asked) == sample(logits.float(), asked)


def test_a_vocabulary_that_float32_cannot_count_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than"):
        Sampler(TPGroup(), (1 << 24) + 1, 1)
