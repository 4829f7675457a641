import pytest

from cluster.plan.devices import CPU, DEVICES, NVLINK, find_device


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("H100-80", "H100-80"),
        ("h100", "H100-80"),
        ("NVIDIA H100 80GB HBM3", "H100-80"),
        ("H200", "H200"),
        ("NVIDIA H200", "H200"),
        ("a100-40gb", "A100-40"),
        ("A100-SXM4-80GB", "A100-80"),
        ("L40S", "L40S"),
        ("b200", "B200"),
        ("H20", "H20"),
        ("rtx 4090", "RTX-4090"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("4090", "RTX-4090"),
        ("cpu", "cpu"),
    ],
)
def test_a_device_is_found_however_it_is_written(written: str, name: str) -> None:
    found = find_device(written)
    assert found is not None
    assert found.name == name


def test_an_unknown_device_is_not_guessed() -> None:
    for written in ("H300", "", "0", "gpu"):
        assert find_device(written) is None


def test_ranks_of_a_cpu_share_its_memory_bandwidth() -> None:
    one, two = CPU.machine(1, 2), CPU.machine(2, 2)
    assert two.bytes_per_second * 2 == one.bytes_per_second
    assert two.flops * 2 == one.flops


def test_eight_bits_are_multiplied_faster_only_where_there_are_units_for_it() -> None:
    for spec in DEVICES:
        assert spec.machine(1, 1).flops == spec.tflops_8bit * 1e12 >= spec.tflops * 1e12
    assert all(spec.tflops == spec.tflops_8bit for spec in DEVICES if spec.name.startswith("A10"))


def test_all_reduces_are_interpolated_by_their_size() -> None:
    assert NVLINK.all_reduce_seconds(1, 10_240) == 0.0
    assert NVLINK.all_reduce_seconds(2, 1) == pytest.approx(4e-6)
    assert NVLINK.all_reduce_seconds(2, 327_680) == pytest.approx(9e-6)
    assert NVLINK.all_reduce_seconds(4, 1_966_080) == pytest.approx(23e-6)
    assert NVLINK.all_reduce_seconds(8, 3_932_160) == pytest.approx(42e-6)
    assert NVLINK.all_reduce_seconds(16, 10_240) == NVLINK.all_reduce_seconds(8, 10_240)
