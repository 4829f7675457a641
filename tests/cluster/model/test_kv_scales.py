import torch

from cluster.model.kv_scales import HEADROOM, KVScales


def test_scales_are_powers_of_two_that_leave_headroom_and_cancel_out() -> None:
    largest = torch.tensor([[300.0, 0.02], [1.0, 90.0]])
    scales = KVScales.fitting(largest, num_heads=4)
    keys, values = 1 / scales.before[4:6, 0], 1 / scales.before[6:, 0]
    for factors in (keys, values):
        assert torch.equal(factors.log2(), factors.log2().round())
    for factors, numbers in ((keys, largest[0]), (values, largest[1])):
        reach = numbers * HEADROOM / factors
        assert ((reach <= 448) & (reach > 224)).all()
    assert torch.equal(scales.before[:4, 0], keys.repeat_interleave(2))
    assert torch.equal(scales.behind[:, 0], values.repeat_interleave(2))


def test_heads_of_which_nothing_is_known_stay_as_they_are() -> None:
    largest = torch.tensor([[0.0, float("nan")], [float("inf"), 0.0]], dtype=torch.bfloat16)
    scales = KVScales.fitting(largest, num_heads=2)
    assert scales.before.dtype is torch.bfloat16
    assert set(scales.before.flatten().tolist() + scales.behind.flatten().tolist()) == {1.0}
