"""What the stages share: the device, the shape, the time that is left, steps to time."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cluster.attention.backend import AttentionMetadata
from cluster.config import EngineConfig
from cluster.device import Device
from tests.gpu.random_model import R1_32B, TINY, RandomWorker, started, write_shape

ROOMY_BYTES = 100 << 30
"""66 GB of weights, a cache of 131,072 tokens (34 GB)."""


@dataclasses.dataclass
class Bench:
    """One run of the script."""

    device: Device
    tiny: bool
    folder: Path
    deadline: float = float("inf")
    """Of the stage that runs, on `time.monotonic`'s clock."""
    done: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Results of stages, earlier runs' included."""
    save: Callable[[], None] = lambda: None
    """Writes down what the stage has told so far: it may be killed at any time."""

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    @property
    def shape(self) -> dict[str, Any]:
        return TINY if self.tiny else R1_32B

    @property
    def quantization(self) -> Literal["none", "fp8"]:
        """Of stages that need room beside the weights: e4m3 where 16 bits would leave none."""
        roomy = self.tiny or self.device.total_memory() > ROOMY_BYTES
        return "none" if roomy else "fp8"

    def pick(self, full: Any, tiny: Any) -> Any:
        return tiny if self.tiny else full

    def config(
        self, name: str = "model", changes: dict[str, Any] | None = None, **settings: Any
    ) -> EngineConfig:
        """Settings of an engine over the run's shape, perhaps changed."""
        folder = write_shape(self.folder / name, self.shape | (changes or {}))
        usual = {
            "device": "cuda" if self.device.is_cuda else "cpu",
            "block_size": 256,
            "speculation": "off",
            "load_progress": False,
            "max_num_seqs": self.pick(256, 8),
            "max_num_batched_tokens": self.pick(8192, 512),
            "num_kv_blocks": None if self.device.is_cuda else 40,
        }
        return EngineConfig(model_path=str(folder), **{**usual, **settings})

    def started(self, *args: Any, **settings: Any) -> RandomWorker:
        return started(self.config(*args, **settings))

    def seconds(self, run: Callable[[], object], rounds: int = 3) -> float:
        """Of one call, the best of some rounds of several calls each."""
        run()
        self.device.synchronize()
        begun = time.perf_counter()
        run()
        self.device.synchronize()
        calls = max(1, min(50, int(self.pick(0.3, 0.01) / max(time.perf_counter() - begun, 1e-6))))
        best = float("inf")
        for _ in range(rounds):
            begun = time.perf_counter()
            for _ in range(calls):
                run()
            self.device.synchronize()
            best = min(best, (time.perf_counter() - begun) / calls)
        return best


def decode_inputs(
    batch: int, context: int, block_size: int, device: torch.device, queries: int = 1
) -> tuple[Tensor, AttentionMetadata]:
    """A step in which every row has `context` tokens, the last `queries` of them to compute, in
    blocks that lie about."""
    pages = -(-context // block_size)
    order = torch.randperm(batch * pages, generator=torch.Generator().manual_seed(3))
    table = (order + 1).view(batch, pages).int().to(device)
    positions = torch.arange(context - queries, context, device=device)
    slots = table[:, positions // block_size].long() * block_size + positions % block_size
    metadata = AttentionMetadata(
        cu_seqlens_q=queries * torch.arange(batch + 1, dtype=torch.int32, device=device),
        seq_lens_k=torch.full((batch,), context, dtype=torch.int32, device=device),
        block_table=table,
        positions=positions.repeat(batch),
        slot_mapping=slots.flatten(),
        max_q=queries,
        max_k=context,
        num_decode=batch if queries == 1 else 0,
    )
    return torch.arange(batch * queries, device=device) + 5, metadata


def chunk_inputs(
    length: int, before: int, block_size: int, device: torch.device
) -> tuple[Tensor, AttentionMetadata]:
    """`length` tokens of one prompt, behind `before` that are computed already."""
    positions = torch.arange(before, before + length, device=device)
    pages = -(-(before + length) // block_size)
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, length], dtype=torch.int32, device=device),
        seq_lens_k=torch.tensor([before + length], dtype=torch.int32, device=device),
        block_table=torch.arange(1, pages + 1, dtype=torch.int32, device=device).unsqueeze(0),
        positions=positions,
        slot_mapping=positions + block_size,
        max_q=length,
        max_k=before + length,
        num_decode=0,
    )
    return positions % 1000 + 5, metadata
