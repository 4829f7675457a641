"""What the device itself reaches: the other stages' figures are shares of it."""

from typing import Any

import torch

from tests.gpu.bench import Bench


@torch.inference_mode()
def run(bench: Bench, told: dict[str, Any]) -> None:
    device = bench.device.torch_device
    numbers = bench.pick(1 << 32, 1 << 22)
    source = torch.ones(numbers, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    told["copy_gb_per_s"] = 2 * numbers / bench.seconds(lambda: target.copy_(source)) / 1e9
    size = bench.pick(8192, 256)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    told["bf16_tflops"] = 2 * size**3 / bench.seconds(lambda: a @ b) / 1e12
