from pathlib import Path

import pytest
import torch

from cluster.device import Device, _cgroup_headroom, _meminfo_available


def test_cpu_takes_float32_unless_asked_otherwise() -> None:
    device = Device.select("cpu", rank=3)
    assert device.torch_device == torch.device("cpu")
    assert device.dtype("auto") is torch.float32
    assert device.dtype("bfloat16") is torch.bfloat16
    assert device.collectives_backend("shm") == "shm"
    assert not device.supports_graphs
    with pytest.raises(ValueError, match=r"nccl does not connect .* cpu; set it to auto or shm"):
        device.collectives_backend("nccl")


def test_auto_without_a_gpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Device.select("auto", rank=0).name == "cpu"


def test_cuda_without_a_gpu_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="set device to 'cpu'"):
        Device.select("cuda", rank=0)


def test_each_rank_takes_its_own_gpu_or_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Device.select("auto", rank=2).torch_device == torch.device("cuda", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    device = Device.select("cuda", rank=2)
    assert chosen == [2, 0]
    assert device.dtype("auto") is torch.bfloat16
    assert (device.collectives_backend("auto"), device.supports_graphs) == ("symmetric", True)
    assert device.collectives_backend("nccl") == "nccl"
    with pytest.raises(ValueError, match=r"shm does not connect .* cuda; set it to auto or nccl"):
        device.collectives_backend("shm")


def test_free_memory_is_less_than_all_memory() -> None:
    device = Device.select("cpu", rank=0)
    assert 0 < device.free_memory() < device.total_memory()
    device.reset_peak()
    device.synchronize()
    assert device.peak_above_now() == 0


def test_available_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 5 kB\n")
    assert _meminfo_available(tmp_path / "meminfo") == 5 * 1024
    assert _meminfo_available(tmp_path / "absent") > 0


def test_a_container_limit_counts_without_its_page_cache(tmp_path: Path) -> None:
    assert _cgroup_headroom(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    assert _cgroup_headroom(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup_headroom(tmp_path) is None
