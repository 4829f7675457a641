import math

import numpy as np
import pytest
import torch

from cluster.worker.noise import MAX_VOCAB, gumbel, row_keys, uniform

MASK = (1 << 64) - 1


def by_hand(seed: int, position: int, token_id: int) -> float:
    """The formula of the module's head in Python's unbounded integers."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    key = mix((mix(seed & MASK) + position * 0xD1342543DE82EF95) & MASK)
    bits = mix((key + (token_id + 1) * 0x9E3779B97F4A7C15) & MASK)
    return -math.log(-math.log(((bits >> 12) + 0.5) / 2**52))


def noise(seeds: list[int], positions: list[int], ids: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(gumbel(row_keys(np.array(seeds), np.array(positions)), ids.numpy()))


def test_noise_is_the_written_formula() -> None:
    seeds = [0, 1, -1, 2**63 - 1, -(2**63)]
    positions = [0, 7, 131_071, 1, 2]
    ids = torch.tensor([0, 1, 152_063])
    got = noise(seeds, positions, ids)
    want = [[by_hand(s, p, int(i)) for i in ids] for s, p in zip(seeds, positions, strict=True)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


def test_a_number_for_a_whole_row_belongs_to_no_token() -> None:
    key = row_keys(np.array([4]), np.array([9]))
    for attempt in (0, 3):
        number = float(uniform(key, attempt)[0, 0])
        assert -math.log(-math.log(number)) == pytest.approx(by_hand(4, 9, MAX_VOCAB + attempt))


def test_noise_depends_on_seed_position_and_id_only() -> None:
    alone = noise([9], [40], torch.tensor([5, 6, 7]))
    batch = noise([1, 9, 2], [3, 40, 4], torch.tensor([[1, 2], [7, 5], [3, 4]]))
    assert torch.equal(batch[1], alone[0, [2, 0]])
    assert len(set(noise([9, 9, 8], [40, 41, 40], torch.tensor([5])).flatten().tolist())) == 3


def test_noise_is_finite_and_gumbel() -> None:
    sample = noise(list(range(200)), [0] * 200, torch.arange(1000)).double().flatten()
    assert sample.isfinite().all()
    assert abs(sample.mean() - 0.57722) < 0.01
    assert abs(sample.var() - math.pi**2 / 6) < 0.02
    # Kolmogorov-Smirnov against exp(-exp(-x)); 1.63 / sqrt(n) is the 1 % bound
    sorted_sample = sample.sort().values
    steps = torch.arange(1, len(sample) + 1) / len(sample)
    assert ((-(-sorted_sample).exp()).exp() - steps).abs().max() < 1.63 / math.sqrt(len(sample))


def test_neighbouring_seeds_positions_and_ids_do_not_correlate() -> None:
    for one, other in (
        (
            noise(list(range(3000)), [5] * 3000, torch.tensor([1])),
            noise(list(range(1, 3001)), [5] * 3000, torch.tensor([1])),
        ),
        (
            noise([4] * 3000, list(range(3000)), torch.tensor([1])),
            noise([4] * 3000, list(range(1, 3001)), torch.tensor([1])),
        ),
        (
            noise([4] * 3000, list(range(3000)), torch.tensor([1])),
            noise([4] * 3000, list(range(3000)), torch.tensor([2])),
        ),
    ):
        assert abs(torch.corrcoef(torch.stack((one[:, 0], other[:, 0])))[0, 1]) < 0.06
