import numpy as np
import pytest

from cluster.worker.step_cost import StepCost


def seconds(cost: StepCost, *sizes: int) -> list[float]:
    return [round(value, 9) for value in cost.seconds(np.array(sizes)).tolist()]


def test_between_measured_sizes_the_cost_is_linear() -> None:
    cost = StepCost()
    assert not cost.known
    cost.observe(1, 0.010, decode=True)
    cost.observe(9, 0.018, decode=True)
    assert cost.known
    assert seconds(cost, 1, 5, 9) == pytest.approx([0.010, 0.014, 0.018], rel=1e-3)


def test_more_positions_never_cost_less() -> None:
    cost = StepCost()
    cost.observe(1, 0.010, decode=True)
    cost.observe(4, 0.009, decode=True)
    cost.observe(8, 0.020, decode=True)
    curve = cost.seconds(np.arange(1, 40))
    assert (np.diff(curve) >= 0).all()


def test_beyond_what_was_measured_the_cost_is_guessed_low_enough_to_be_tried() -> None:
    cost = StepCost()
    cost.observe(1, 0.010, decode=True)
    assert 0.010 < seconds(cost, 9)[0] < 0.5 * 9 * 0.010


def test_one_stalled_step_changes_little() -> None:
    cost = StepCost()
    for _ in range(20):
        cost.observe(1, 0.010, decode=True)
    cost.observe(1, 5.0, decode=True)
    assert seconds(cost, 1)[0] < 0.012


def test_a_prefill_counts_until_decodes_of_its_size_are_known() -> None:
    cost = StepCost()
    cost.observe(8, 0.012, decode=False)
    assert seconds(cost, 8) == [0.012]
    cost.observe(8, 0.020, decode=True)
    cost.observe(8, 0.012, decode=False)
    assert seconds(cost, 8) == [0.020]


def test_an_estimate_that_is_not_renewed_shrinks_until_it_is_tried_again() -> None:
    cost = StepCost()
    cost.observe(1, 0.010, decode=True)
    cost.observe(8, 0.080, decode=True)
    for _ in range(2560):
        cost.observe(1, 0.010, decode=True)
    assert seconds(cost, 1) == [0.010]
    assert seconds(cost, 8)[0] < 0.065


@pytest.mark.parametrize("positions", [1, 100, 10**6])
def test_any_size_has_a_place(positions: int) -> None:
    cost = StepCost()
    cost.observe(positions, 0.5, decode=True)
    assert seconds(cost, positions) == [0.5]


def test_the_version_tells_when_the_curve_is_another() -> None:
    cost = StepCost()
    cost.observe(1, 0.010, decode=True)
    before = cost.version
    cost.observe(8, 0.020, decode=True)
    assert cost.version > before
