"""Devices by name: what a rank can hold, read, multiply, and what it costs.

Owns the catalogue. Memory is what nvidia-smi shows, bandwidth the data sheet's, products 81 % of
the data sheet's dense rate (76 % in 8 bits), the share that large matrix products reach. Prices are
rough on-demand prices of one device for an hour: give your own.
"""

from dataclasses import dataclass

from cluster.plan.memory import GIB
from cluster.plan.speed import Link, Machine

_US = 1e-6
# All-reduces over NVLink in one shot, by bytes: hidden 5120 at batch 1, 32, 128 and 256.
_SIZES = (10_240, 327_680, 1_310_720, 2_621_440)
NVLINK = Link(
    {
        tp: tuple((size, us * _US) for size, us in zip(_SIZES, times, strict=True))
        for tp, times in {2: (4, 9, 20, 30), 4: (4.5, 12, 19, 27), 8: (6, 17, 22, 32)}.items()
    }
)
PCIE = Link(
    {
        tp: ((10_240, start * _US), (10_240 + 20_000_000, (start + 1000 * share) * _US))
        for tp, start, share in ((2, 15, 1.0), (4, 25, 1.5), (8, 40, 1.75))
    }
)
SHARED_MEMORY = Link({2: ((3_584, 1.8 * _US), (20_480, 5.8 * _US), (655_360, 87 * _US))})


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One kind of device."""

    name: str
    memory_gib: float
    gb_per_s: float
    tflops: float
    """In bfloat16."""
    tflops_8bit: float
    """Where there are no 8-bit units, that of bfloat16."""
    price_per_hour: float
    link: Link = NVLINK
    is_cpu: bool = False
    """Its memory and bandwidth are the whole host's, and the ranks share them."""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * GIB)

    def machine(self, tp: int, linear_bytes: int) -> Machine:
        """What one of `tp` ranks computes with, at so many bytes per weight."""
        ranks = tp if self.is_cpu else 1
        tflops = self.tflops_8bit if linear_bytes == 1 else self.tflops
        return Machine(self.gb_per_s * 1e9 / ranks, tflops * 1e12 / ranks, self.link)


CPU = DeviceSpec("cpu", 24.0, 26.0, 0.3, 0.6, 0.1, SHARED_MEMORY, is_cpu=True)
"""Two cores of a server with AVX-512; a plan for a real host gives its own figures."""

DEVICES = (
    DeviceSpec("A10G", 22.5, 600, 57, 57, 1.0, PCIE),
    DeviceSpec("A100-40", 40.0, 1555, 250, 250, 1.3),
    DeviceSpec("A100-80", 80.0, 2039, 250, 250, 1.8),
    DeviceSpec("H20", 95.6, 4000, 120, 225, 2.2),
    DeviceSpec("H100-80", 79.6, 3350, 800, 1500, 3.0),
    DeviceSpec("H100-96", 95.0, 3350, 800, 1500, 3.2),
    DeviceSpec("H200", 140.4, 4800, 800, 1500, 3.8),
    DeviceSpec("B200", 179.1, 7700, 1800, 3400, 5.5),
    DeviceSpec("L4", 22.5, 300, 97, 184, 0.7, PCIE),
    DeviceSpec("L40S", 45.0, 864, 290, 555, 1.2, PCIE),
    DeviceSpec("RTX-3090", 24.0, 936, 57, 57, 0.3, PCIE),
    DeviceSpec("RTX-4090", 24.0, 1008, 132, 250, 0.4, PCIE),
    DeviceSpec("RTX-5090", 31.8, 1792, 170, 318, 0.7, PCIE),
    CPU,
)
_SHORT = {"a100": "a10080", "h100": "h10080"}


def find_device(name: str) -> DeviceSpec | None:
    """By name, however it is written: `NVIDIA H100 80GB`, `rtx4090` and `4090` are all known."""
    wanted = _plain(name)
    wanted = _SHORT.get(wanted, wanted)
    return next(
        (d for d in DEVICES if wanted in (_plain(d.name), d.name.removeprefix("RTX-"))), None
    )


def _plain(name: str) -> str:
    for word in ("nvidia", "geforce", "tesla", "sxm5", "sxm4", "sxm", "pcie", "hbm3e", "hbm3"):
        name = name.lower().replace(word, "")
    return "".join(c for c in name if c.isalnum()).removesuffix("gb")
