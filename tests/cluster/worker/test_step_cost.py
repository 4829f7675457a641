import numpy as np
import pytest

from cluster.worker.step_cost import StepCost


def seconds(cost: StepCost, *sizes: int) -> list[float]:
    return [round(value, 9) for value in cost.seconds(np.array(sizes)).tolist()]


def test_between_measured_sizes_the_cost_is_linear() -> None:
    cost = StepCost()
    assert not cost.known
    cost.observe(1, 0.010)
    cost.observe(9, 0.018)
    assert cost.known
    assert seconds(cost, 1, 5, 9) == pytest.approx([0.010, 0.014, 0.018], rel=1e-2)


def test_more_positions_never_cost_less() -> None:
    cost = StepCost()
    cost.observe(1, 0.010)
    cost.observe(4, 0.009)
    cost.observe(8, 0.020)
    curve = cost.seconds(np.arange(1, 40))
    assert (np.diff(curve) >= 0).all()


def test_beyond_what_was_measured_the_cost_is_guessed_low_enough_to_be_tried() -> None:
    cost = StepCost()
    cost.observe(1, 0.010)
    assert 0.010 < seconds(cost, 9)[0] < 0.5 * 9 * 0.010


def test_one_stalled_step_changes_little() -> None:
    cost = StepCost()
    for _ in range(20):
        cost.observe(1, 0.010)
    cost.observe(1, 5.0)
    assert seconds(cost, 1)[0] < 0.012


def test_of_the_first_measurements_the_shortest_counts() -> None:
    cost = StepCost()
    for taken in (0.500, 0.012, 0.040, 0.013):
        cost.observe(8, taken)
    assert 0.012 <= seconds(cost, 8)[0] <= 0.0132


def test_a_size_measured_once_and_dearly_is_soon_tried_again() -> None:
    cost = StepCost()
    cost.observe(8, 0.500)
    for _ in range(320):
        cost.observe(1, 0.010)
    assert seconds(cost, 8)[0] < 0.5 * 0.500


def test_an_estimate_that_is_not_renewed_shrinks_until_it_is_tried_again() -> None:
    cost = StepCost()
    cost.observe(1, 0.010)
    for _ in range(8):
        cost.observe(8, 0.080)
    for _ in range(768):
        cost.observe(1, 0.010)
    assert seconds(cost, 1) == [0.010]
    assert seconds(cost, 8)[0] < 0.065


@pytest.mark.parametrize("positions", [1, 100, 10**6])
def test_any_size_has_a_place(positions: int) -> None:
    cost = StepCost()
    cost.observe(positions, 0.5)
    assert seconds(cost, positions) == [0.5]


def test_the_version_tells_when_the_curve_is_another() -> None:
    cost = StepCost()
    cost.observe(1, 0.010)
    before = cost.version
    cost.observe(8, 0.020)
    assert cost.version > before
