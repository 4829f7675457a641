"""RankMemory: what a rank's KV cache and its recorded steps take of its device.

Owns the room that is left for the cache once weights, a step's peak and recordings have theirs, and
the allocation of both. Knows no requests, and loads nothing.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.attention.backend import FP8, AttentionBackend, allocate_kv_layer
from cluster.config import EngineConfig
from cluster.device import Device
from cluster.model.decoder import Decoder
from cluster.model.model_config import ModelConfig
from cluster.model.tp_group import TPGroup
from cluster.plan.deployment import Deployment
from cluster.plan.memory import CPU_KV_BYTES, CPU_KV_SHARE, GIB, kv_bytes_per_token, num_kv_blocks
from cluster.worker.dummy_step import largest_kv, run_dummy, sample_blocks
from cluster.worker.graphs.decode_graphs import DecodeGraphs
from cluster.worker.graphs.measurement import graph_bytes
from cluster.worker.graphs.obstacles import obstacle
from cluster.worker.graphs.sizes import graph_sizes
from cluster.worker.progress import recording_progress
from cluster.worker.sizing import advised

_log = logging.getLogger(__name__)


LOGIT_BYTES = 3 * 4
"""Of a position's logit while it is drawn from, beside itself: three copies in float32."""


class Beside(NamedTuple):
    """What a second model takes of the rank's device: it has as many blocks of its own."""

    kv_bytes_per_token: int
    step_bytes: Callable[[], int]


class RankMemory:
    """One rank's."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        device: Device,
        group: TPGroup,
        dtype: torch.dtype,
        backend: AttentionBackend,
        plan: Deployment,
    ) -> None:
        """`dtype` of keys and values as computed; `plan`: whose advice errors carry."""
        self._config = config
        self._model_config = model_config
        self._device = device
        self._group = group
        self._dtype = FP8 if config.kv_cache_dtype == "fp8" else dtype
        self._computed = dtype
        self._backend = backend
        self._plan = plan

    @property
    def kv_bytes_per_token(self) -> int:
        """On this rank."""
        return kv_bytes_per_token(self._model_config.shape, self._group.size, self._dtype.itemsize)

    def num_kv_blocks(self, model: Callable[[], Decoder], beside: Beside | None = None) -> int:
        """Blocks of the KV cache, dummy block included; the smallest of what the ranks can hold.

        Args:
            model: whose step is measured, where nothing but a step can tell.
            beside: a smaller model on this rank.

        Raises:
            ValueError: not even one block fits.
        """
        config, token_bytes = self._config, self.kv_bytes_per_token
        if config.num_kv_blocks is not None:
            return config.num_kv_blocks
        if config.kv_cache_gib is not None:
            room = int(config.kv_cache_gib * GIB) // self._group.size
        elif self._device.is_cuda:
            besides = beside.step_bytes() if beside else 0  # first: what it keeps is in use then
            room = self._cuda_room(model()) - besides
        else:
            share = int(self._device.free_memory() * CPU_KV_SHARE)
            room = min(share, CPU_KV_BYTES) // self._group.size
        if beside is not None and config.kv_cache_gib is None:
            token_bytes += beside.kv_bytes_per_token
        with advised(self._plan, config):
            blocks = num_kv_blocks(room, token_bytes, config.block_size)
        if config.kv_cache_gib is None:
            max_model_len = config.max_model_len or self._model_config.max_position
            blocks = min(blocks, config.max_num_seqs * -(-max_model_len // config.block_size) + 1)
        offered = torch.tensor([blocks], dtype=torch.int64, device=self._device.torch_device)
        return int(self._group.all_gather(offered).min())

    def fit_scales(self, model: Decoder, num_ids: int) -> None:
        """Where the cache rounds, let the model keep what it can hold; collective.

        `num_ids`: ids that have a token.
        """
        if self._dtype is not self._computed:
            unrounded = self.allocate(sample_blocks(self._config.block_size), self._computed)
            model.scale_kv(largest_kv(model, self._backend, unrounded, num_ids))

    def allocate(self, num_blocks: int, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The zero-filled cache, layer by layer; `dtype`: other than the cache's own."""
        model = self._model_config
        return [
            allocate_kv_layer(
                num_blocks,
                self._config.block_size,
                model.num_kv_heads // self._group.size,
                model.head_dim,
                dtype or self._dtype,
                self._device.torch_device,
            )
            for _ in range(model.num_layers)
        ]

    def record(
        self, model: Decoder, kv_cache: list[Tensor], max_model_len: int
    ) -> DecodeGraphs | None:
        """The decode steps that will be replayed; None, and a line that says why, if none can."""
        reason = self._obstacle()
        if reason is not None:
            if self._device.is_cuda and self._group.rank == 0:
                _log.info("no CUDA graphs: %s", reason)
            return None
        sizes = self._graph_sizes()
        graphs = self._unrecorded(model, kv_cache, sizes, max_model_len)
        start, free = time.perf_counter(), self._device.free_memory()
        shown = self._config.load_progress and self._group.rank == 0
        with recording_progress(shown, graphs.num_recordings) as on_recorded:
            graphs.record(self._device.graph_recorder(), on_recorded)
        _log.info(
            "rank %d: %d CUDA graphs of %s tokens, %.2f GiB in %.1f s",
            self._group.rank,
            graphs.num_recordings,
            ", ".join(map(str, sizes)),
            (free - self._device.free_memory()) / GIB,
            time.perf_counter() - start,
        )
        return graphs

    def _cuda_room(self, model: Decoder) -> int:
        """Bytes the cache may take: our share of the GPU less what is used and what steps take."""
        taken, device = self.step_bytes(model), self._device
        total, free = device.total_memory(), device.free_memory()
        return int(total * self._config.gpu_memory_utilization) - (total - free) - taken

    def step_bytes(self, model: Decoder) -> int:
        """What steps will take of the GPU beside weights and cache: the peak of a prompt's chunk,
        the logits that are drawn from meanwhile, and what recorded steps hold."""
        config, device = self._config, self._device
        longest = config.max_model_len or self._model_config.max_position
        device.reset_peak()
        kv_cache = self.allocate(1)
        run_dummy(model, self._backend, kv_cache, config.max_num_batched_tokens)
        device.synchronize()
        taken = device.peak_above_now() + self._draw_bytes()
        if self._obstacle() is None:
            taken += graph_bytes(
                lambda few: self._unrecorded(model, kv_cache, few, longest),
                self._graph_sizes(),
                device,
            )
        return taken

    def _unrecorded(
        self, model: Decoder, kv_cache: list[Tensor], sizes: Sequence[int], max_model_len: int
    ) -> DecodeGraphs:
        queries = self._captured_queries
        return DecodeGraphs(model, self._backend, kv_cache, sizes, max_model_len, queries)

    @property
    def _captured_queries(self) -> int:
        """Of a row, in recorded steps."""
        if self._config.deterministic:
            return 1  # splits of fixed size, of the longest rows: room for gigabytes of sums
        return min(1 + self._num_drafts, self._backend.captured_queries)

    @property
    def _num_drafts(self) -> int:
        config = self._config
        return config.num_speculative_tokens if config.speculation != "off" else 0

    def _draw_bytes(self) -> int:
        """Of the logits of as many positions as a step may draw from."""
        config = self._config
        positions = config.max_num_seqs * (1 + self._num_drafts)
        positions = min(positions, config.max_num_batched_tokens)
        width = self._model_config.vocab_size // self._group.size
        return positions * width * (self._computed.itemsize + LOGIT_BYTES)

    def _obstacle(self) -> str | None:
        return obstacle(self._config, self._device, self._backend, self._group)

    def _graph_sizes(self) -> Sequence[int]:
        most = max(self._config.max_num_seqs, self._captured_queries)
        return graph_sizes(self._config.cuda_graph_sizes, most)
