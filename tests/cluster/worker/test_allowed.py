import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import EngineConfig
from cluster.device import Device
from cluster.kernels.selection import select_kernels
from cluster.model.tp_group import TPGroup
from cluster.worker.allowed import Allowed, _unpacked, forbid_others
from cluster.worker.sampler import Sampler, SamplingBatch

VOCAB = 64


def packed(ids: list[set[int]], vocab: int = VOCAB, spare: int = 0) -> Allowed:
    bits = np.zeros((len(ids), -(-vocab // 8) * 8 + 8 * spare), np.uint8)
    for place, some in enumerate(ids):
        bits[place, sorted(some)] = 1
    return Allowed(np.arange(len(ids)), np.packbits(bits, axis=1, bitorder="little"))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_rank_forbids_its_share_of_the_ids(data: st.DataObject) -> None:
    ranks = data.draw(st.sampled_from([1, 2, 3, 4]))
    local = data.draw(st.integers(1, 40))
    positions = data.draw(st.integers(1, 5))
    chosen = data.draw(st.lists(st.integers(0, positions - 1), min_size=1, unique=True).map(sorted))
    ids = [data.draw(st.sets(st.integers(0, ranks * local - 1))) for _ in chosen]
    allowed = packed(ids, ranks * local, spare=data.draw(st.integers(0, 2)))
    allowed = Allowed(np.array(chosen), allowed.bits)
    logits = torch.randn(positions, ranks * local)
    shares = list(torch.split(logits.clone(), local, 1))
    for rank, share in enumerate(shares):
        forbid_others(share, allowed, rank * local)
    for place, some in zip(chosen, ids, strict=True):
        others = [token_id for token_id in range(ranks * local) if token_id not in some]
        logits[place, others] = -math.inf
    assert torch.equal(torch.cat(shares, 1), logits)


def test_bits_are_the_same_on_either_side_of_the_bus() -> None:
    packed_ = np.random.default_rng(3).integers(0, 256, (5, 11), np.uint8)
    here = torch.from_numpy(np.unpackbits(packed_, axis=1, bitorder="little")).bool()
    assert torch.equal(_unpacked(torch.from_numpy(packed_)), here)


def batch(temperature: list[float]) -> SamplingBatch:
    count, none = len(temperature), np.zeros(0, np.int64)
    return SamplingBatch(
        temperature=np.array(temperature, np.float32),
        top_p=np.ones(count, np.float32),
        min_p=np.zeros(count, np.float32),
        top_k=np.zeros(count, np.int64),
        seed=np.full(count, 3),
        position=np.arange(count),
        banned_rows=none,
        banned_ids=none,
    )


def test_constrained_draws_have_the_distribution_of_the_softmax_over_what_is_allowed() -> None:
    draws, some = 20_000, {1, 5, 6, 17, 40, 41, 63}
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1)) * 2
    allowed = packed([some] * draws)
    sampler = Sampler(TPGroup(), VOCAB, VOCAB)
    drawn = sampler.sample(logits.repeat(draws, 1), batch([1.0] * draws), allowed)
    counts = np.bincount(drawn.token_ids, minlength=VOCAB)
    index = sorted(some)
    want = logits[index].double().softmax(-1).numpy() * draws
    assert counts.sum() == counts[index].sum() == draws
    assert ((counts[index] - want) ** 2 / want).sum() < 22.5  # 0.1 % of chi-square with 6


def test_logprobs_are_those_of_the_model_without_a_grammar() -> None:
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(4))
    asked = dataclasses.replace(batch([0.0, 1.0]), num_logprobs=np.array([2, 0]))
    drawn = Sampler(TPGroup(), VOCAB, VOCAB).sample(logits.clone(), asked, packed([{7}, {8}]))
    assert drawn.token_ids.tolist() == [7, 8]
    assert drawn.logprobs is not None
    own = logits.log_softmax(-1)
    for row, (token, told) in enumerate(zip((7, 8), drawn.logprobs, strict=True)):
        assert told is not None
        assert told.logprob == pytest.approx(own[row, token].item(), abs=1e-5)
    assert drawn.logprobs[0] is not None
    assert drawn.logprobs[0].top_ids == own[0].topk(2).indices.tolist()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_constrained_rows_leave_their_neighbours_alone(
    ranks: Callable[[int], Any], size: int, compiled: bool
) -> None:
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(2))
    temperatures = [0.0, 0.0, 1.0, 1.0, 0.7, 0.0]
    allowed = packed([{7, 40}, {9}, set()])
    allowed = Allowed(np.array([0, 3, 5]), allowed.bits)
    config = EngineConfig(model_path="-", device="cpu")
    kernels = select_kernels(Device.select("cpu", 0), torch.float32, config) if compiled else None

    def draw(group: TPGroup) -> Any:
        sampler = Sampler(group, VOCAB, VOCAB, kernels)
        share = torch.split(logits, VOCAB // size, 1)[group.rank]
        free = sampler.sample(share.clone(), batch(temperatures))
        return free, sampler.sample(share.clone(), batch(temperatures), allowed)

    for free, bound in ranks(size).run(draw):
        best = 7 if logits[0, 7] > logits[0, 40] else 40
        want = [best, free.token_ids[1], free.token_ids[2], 9, free.token_ids[4]]
        assert bound.token_ids[:5].tolist() == want
        assert bound.healthy.tolist() == [True] * 5 + [False]  # nothing was left to the last
