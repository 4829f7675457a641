"""Device: cuda or cpu, asked in one place.

Owns every question to the machine about memory, number formats, collectives and graphs. Refuses to
know models, requests and kernels. No other module calls `torch.cuda`.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import torch
from torch import Tensor

_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


@dataclasses.dataclass(frozen=True)
class Device:
    """The one device of one rank."""

    torch_device: torch.device

    @classmethod
    def select(cls, wanted: Literal["auto", "cpu", "cuda"], rank: int) -> "Device":
        """The device of a rank: the one GPU it can see, or the GPU of its number, or the CPU.

        Raises:
            RuntimeError: cuda is asked for and there is none.
        """
        available = torch.cuda.is_available()
        if wanted == "cpu" or (wanted == "auto" and not available):
            return cls(torch.device("cpu"))
        if not available:
            raise RuntimeError(
                "device is 'cuda' but torch finds no usable GPU: install a CUDA build of torch and "
                "a driver, or set device to 'cpu'"
            )
        index = rank % torch.cuda.device_count()
        torch.cuda.set_device(index)
        return cls(torch.device("cuda", index))

    @property
    def is_cuda(self) -> bool:
        return self.torch_device.type == "cuda"

    @property
    def name(self) -> str:
        """For people: `cpu` or the GPU's product name."""
        return torch.cuda.get_device_name(self.torch_device) if self.is_cuda else "cpu"

    @property
    def capability(self) -> tuple[int, int]:
        """CUDA's compute capability; (0, 0) for a CPU."""
        if not self.is_cuda:
            return 0, 0
        major, minor = torch.cuda.get_device_capability(self.torch_device)
        return int(major), int(minor)

    @property
    def num_processors(self) -> int:
        """Streaming multiprocessors of a GPU."""
        return int(torch.cuda.get_device_properties(self.torch_device).multi_processor_count)

    def collectives_backend(
        self, wanted: Literal["auto", "shm", "gloo", "nccl"]
    ) -> Literal["auto", "shm", "gloo", "nccl", "symmetric"]:
        """What connects ranks on such devices.

        Raises:
            ValueError: what was asked for does not connect them.
        """
        fitting = ("auto", "nccl") if self.is_cuda else ("auto", "shm", "gloo")
        if wanted not in fitting:
            raise ValueError(
                f"collectives: {wanted} does not connect ranks on device {self.torch_device.type}; "
                f"set it to {' or '.join(fitting)}"
            )
        return "symmetric" if self.is_cuda and wanted == "auto" else wanted

    @property
    def computes_apart(self) -> bool:
        """Whether it computes while the host goes on, so that the host may plan ahead."""
        return self.is_cuda

    @property
    def supports_graphs(self) -> bool:
        """Whether a decode step can be captured and replayed (CUDA graphs)."""
        return self.is_cuda

    def graph_recorder(self) -> "GraphRecorder":
        """One whose recordings share a memory pool; only where `supports_graphs`."""
        return GraphRecorder()

    def dtype(self, wanted: Literal["auto", "float32", "bfloat16"]) -> torch.dtype:
        """The number format of weights, activations and KV cache; auto: bfloat16 on CUDA only."""
        if wanted == "auto":
            return torch.bfloat16 if self.is_cuda else torch.float32
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32

    def use_threads(self, count: int) -> None:
        """Threads of one CPU operation; between operations there is no parallelism."""
        torch.set_num_threads(count)
        with contextlib.suppress(RuntimeError):  # allowed once, before the first parallel region
            torch.set_num_interop_threads(1)

    def total_memory(self) -> int:
        """Bytes of the device's memory, for a CPU of the machine or its container."""
        if self.is_cuda:
            return int(torch.cuda.mem_get_info(self.torch_device)[1])
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def free_memory(self) -> int:
        """Bytes that can be allocated now; on a CPU the container's limit counts as well."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            return int(torch.cuda.mem_get_info(self.torch_device)[0])
        available = _meminfo_available(Path("/proc/meminfo"))
        headroom = _cgroup_headroom(Path("/sys/fs/cgroup"))
        return available if headroom is None else min(available, headroom)

    def reset_peak(self) -> None:
        """Start a measurement of `peak_above_now`."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.torch_device)

    def peak_above_now(self) -> int:
        """Bytes that were allocated at the peak since `reset_peak` and are free again; CPU: 0."""
        if not self.is_cuda:
            return 0
        peak = torch.cuda.max_memory_allocated(self.torch_device)
        return int(peak - torch.cuda.memory_allocated(self.torch_device))

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch_device)


def sent(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A host array on its way to a device; the host does not wait.

    It travels from pinned memory, which torch's allocator hands out again once it was read.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Arriving:
    """A copy of a tensor on its way to the host, behind all that the device was given before."""

    def __init__(self, tensor: Tensor) -> None:
        self.late = tensor.device.type != "cpu"
        """Whether it may take a while."""
        self._host = tensor
        if self.late:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record()

    def numpy(self) -> npt.NDArray[Any]:
        """What arrived; waits until it has."""
        if self.late:
            self._there.synchronize()
        array: npt.NDArray[Any] = self._host.numpy()
        return array


class GraphRecorder:
    """Records what a function lets the current GPU do, as CUDA graphs."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record `run`, which is called once and computes nothing now.

        Other threads may use the GPU meanwhile: nccl's watchdog asks it for events.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        return graph


def _meminfo_available(path: Path) -> int:
    """MemAvailable of Linux in bytes; elsewhere half of the physical memory."""
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _cgroup_headroom(root: Path) -> int | None:
    """Bytes left below the container's limit (cgroup v2, then v1), page cache not counted."""
    for limit_name, used_name, stat_name, cache_key in _CGROUP_FILES:
        try:
            limit = int((root / limit_name).read_text())
            used = int((root / used_name).read_text())
            stat = (root / stat_name).read_text().split()
        except (OSError, ValueError):  # absent, unreadable, or the word "max"
            continue
        pairs = dict(zip(stat[::2], stat[1::2], strict=False))
        return max(0, limit - used + int(pairs.get(cache_key, 0)))
    return None
