"""Device: cuda or cpu, asked in one place.

Owns every question to the machine about memory, number formats, collectives and graphs. Refuses to
know models, requests and kernels. No other module calls `torch.cuda`.
"""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Literal

import torch

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

    def collectives_backend(
        self, wanted: Literal["auto", "shm", "gloo"]
    ) -> Literal["auto", "shm", "gloo", "nccl"]:
        """What connects ranks on such devices; the wish counts between CPUs only."""
        return "nccl" if self.is_cuda else wanted

    @property
    def supports_graphs(self) -> bool:
        """Whether a decode step can be captured and replayed (CUDA graphs)."""
        return self.is_cuda

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
