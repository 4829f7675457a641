"""Models of real shapes with random weights: nothing is downloaded, and nothing crosses the host.

Weights are made on the device and go through the same sinks as a checkpoint's, so that each rank
holds, and quantises, what it would hold.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.config import EngineConfig
from cluster.engine.rank_main import run_rank
from cluster.model.decoder import Decoder
from cluster.model.tp_group import TPGroup
from cluster.worker.gang import RankSpec
from cluster.worker.graphs.decode_graphs import DecodeGraphs
from cluster.worker.worker import Worker

TOKENIZER = Path(__file__).parents[2] / "configs/models/deeprequest-demo"
R1_32B = {
    "model_type": "qwen2",
    "hidden_size": 5120,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "intermediate_size": 27_648,
    "vocab_size": 152_064,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 151_643,
    "bos_token_id": 151_646,
}
TINY = R1_32B | {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 256,
    "vocab_size": 16_384,
    "max_position_embeddings": 2048,
    "eos_token_id": 3,
    "bos_token_id": 1,
}
PIECE = 1 << 26
"""Numbers made at a time."""


def write_shape(folder: Path, shape: dict[str, Any]) -> Path:
    """A model folder without weights, and with the demo model's words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape))
    for file in TOKENIZER.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    return folder


class RandomWorker(Worker):
    """A worker that makes its weights up, the same ones from the same seed and device."""

    def _fill(self, model: Decoder, layout: str) -> int:
        device = self.device.torch_device
        noise = torch.Generator(device).manual_seed(7)
        count = 0
        for shard in model.shards():
            rows, *rest = shard.sink.shape
            step = max(1, PIECE // (rest[0] if rest else 1))
            for row in range(0, rows, step):
                size = (min(step, rows - row), *rest)
                made = torch.randn(size, generator=noise, device=device, dtype=torch.bfloat16)
                shard.sink.write(row, 1 + 0.1 * made if "norm" in shard.name else 0.02 * made)
                count += made.nbytes
        return count

    @property
    def kv_cache(self) -> list[Tensor]:
        assert self._runner is not None
        return self._runner._kv_cache

    @property
    def graphs(self) -> DecodeGraphs | None:
        assert self._runner is not None
        return self._runner._graphs


class LoneGroup(TPGroup):
    """One rank of several, without the others: its own share of the work, and no waiting."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.size, -1)


def started(config: EngineConfig) -> RandomWorker:
    """A worker ready for steps: the only one, or the first of `tensor_parallel_size`, alone."""
    size = config.tensor_parallel_size
    worker = RandomWorker(config, 0, TPGroup() if size == 1 else LoneGroup(size))
    worker.load()
    worker.init_kv_cache(worker.num_kv_blocks())
    return worker


def random_rank(spec: RankSpec) -> None:
    """The life of a rank process with such a worker."""
    run_rank(spec, lambda told, rendezvous: RandomWorker(told.config, told.rank, TPGroup()))
