"""Worker: one rank of a replica, from an empty process to answered steps.

Owns the order of start-up (load, size the KV cache, allocate, warm) and the facts found on the
way, which it returns and never writes back into the config. Knows no sockets and no scheduler.

    worker = Worker(config, rank, group)
    worker.load()                                   # weights
    worker.init_kv_cache(worker.num_kv_blocks())    # both are collective: every rank calls them
    worker.execute(frame)
"""

import logging
import time
from functools import partial
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor

from cluster.attention.backend import HeadShape, allocate_kv_layer
from cluster.attention.selection import select_attention
from cluster.batch import ModelRunnerOutput, SchedulerOutput
from cluster.config import EngineConfig
from cluster.cores import pin_rank, threads_per_rank
from cluster.device import Device
from cluster.heap import keep_freed_memory
from cluster.kernels.selection import select_kernels
from cluster.model.decoder import Decoder
from cluster.model.model_config import ModelConfig, read_model_config
from cluster.model.parallel import Placement
from cluster.model.tp_group import TPGroup
from cluster.model.weight_cache import WeightCache, cache_key, held_tensors
from cluster.model.weights import load_weights
from cluster.plan.memory import (
    CPU_KV_BYTES,
    CPU_KV_SHARE,
    GIB,
    check_tensor_parallel_size,
    fit_max_model_len,
    kv_bytes_per_token,
    num_kv_blocks,
)
from cluster.worker.draft_model import DraftLimits, DraftModel
from cluster.worker.graphs.decode_graphs import DecodeGraphs
from cluster.worker.graphs.measurement import graph_bytes
from cluster.worker.graphs.obstacles import obstacle
from cluster.worker.graphs.sizes import graph_sizes
from cluster.worker.input_batch import InputBatch
from cluster.worker.model_runner import ModelRunner, run_dummy
from cluster.worker.ngram import NgramProposer
from cluster.worker.progress import loading_progress, recording_progress
from cluster.worker.row_grammars import Grammars, RowGrammars
from cluster.worker.sampler import Sampler
from cluster.worker.sizing import advised, check_weights, device_spec, log_memory, plan_rank
from cluster.worker.speculative import Proposer, Speculator

_log = logging.getLogger(__name__)


class WorkerFacts(msgspec.Struct, frozen=True, array_like=True):
    """What start-up found out; the same on every rank, save who computes."""

    vocab_size: int
    num_real_tokens: int
    """Ids below it have a token; the rest of the vocabulary is padding and is never drawn."""
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    num_kv_blocks: int
    """The dummy block included."""
    block_size: int
    kv_bytes_per_token: int
    """On one rank."""
    weight_bytes: int
    """Read by this rank."""
    device: str
    dtype: str
    attention_backend: str
    kernels: str
    """Who computes, as far as it may change the bits of an answer."""


class Worker:
    """One rank: its device, its slice of the model, its share of the KV cache."""

    def __init__(
        self, config: EngineConfig, rank: int, group: TPGroup, grammars: Grammars | None = None
    ) -> None:
        """Choose the device and read the model's config; no weights yet.

        `grammars`: for requests whose answer must follow one; None: they fail.

        Raises:
            UnsupportedModelError, ValueError: the checkpoint or the parallel size cannot be served.
            RuntimeError: the device is not there.
        """
        if (rank, config.tensor_parallel_size) != (group.rank, group.size):
            raise ValueError(
                f"rank {rank} of tensor_parallel_size {config.tensor_parallel_size} was given a "
                f"group in which it is rank {group.rank} of {group.size}"
            )
        self.config = config
        self.rank = rank
        self.group = group
        self._grammars = grammars
        self._model_dir = Path(config.model_path)
        self.model_config: ModelConfig = read_model_config(self._model_dir)
        check_tensor_parallel_size(self.model_config.shape, group.size)
        self.device = Device.select(config.device, rank)
        if not self.device.is_cuda:
            threads = threads_per_rank(config.threads_per_rank, group.size)
            self.device.use_threads(threads)
            pinned = pin_rank(rank, group.size, threads, config.pin_ranks)
            if config.pin_ranks and not pinned:
                _log.warning("rank %d is not pinned: too few cores", rank)
        self._dtype = self.device.dtype(config.dtype)
        model = self.model_config
        heads = HeadShape(model.num_heads, model.num_kv_heads, model.head_dim, self._dtype)
        self._kernels = select_kernels(self.device, self._dtype, config)
        heads = heads.share(group.size)
        self._backend = select_attention(config, self.device, self._kernels, heads)
        self._num_real_tokens = _num_real_tokens(self._model_dir, self.model_config.vocab_size)
        self._plan = plan_rank(
            config,
            self.model_config,
            device_spec(self.device),
            self._dtype.itemsize,
            knows_words=grammars is not None,
        )
        self._weight_bytes = 0
        self._model: Decoder | None = None
        self._small: Worker | None = None
        self._runner: ModelRunner | None = None
        self._facts: WorkerFacts | None = None

    @property
    def facts(self) -> WorkerFacts:
        """Known once the KV cache stands."""
        assert self._facts is not None, "init_kv_cache first"
        return self._facts

    def load(self) -> None:
        """Read this rank's slices; rank 0 shows how far it is.

        Raises:
            WeightError: the checkpoint is incomplete or of another model.
            ValueError: the weights do not fit the device; the message names settings that would.
        """
        check_weights(self._plan)
        device = self.device.torch_device
        kernels = self._kernels
        where = Placement(self.group, device, self._dtype, kernels, self.config.deterministic)
        longest = self.config.max_model_len or self.model_config.max_position
        model = Decoder(self.model_config, where, min(longest, self.model_config.max_position))
        start = time.perf_counter()
        with torch.inference_mode():
            self._weight_bytes = self._fill(model, kernels.layout)
        seconds = time.perf_counter() - start
        rate = self._weight_bytes / GIB / seconds
        _log.info(
            "rank %d: %.2f GiB in %.1f s (%.2f GiB/s)",
            self.rank,
            self._weight_bytes / GIB,
            seconds,
            rate,
        )
        for line in kernels.describe() if self.rank == 0 else ():
            _log.info("%s", line)
        log_memory(self._plan, self.device, self.rank, kv_bytes=0)
        self._model = model
        self._small = self._load_small()

    def _fill(self, model: Decoder, layout: str) -> int:
        """Read the weights from the rank's cache, or from the checkpoint; the bytes read."""
        tied = ("lm_head.weight",) if self.model_config.tie_word_embeddings else ()
        cache = self._weight_cache(layout)
        tensors = held_tensors(model.shards()) if cache is not None else {}
        if cache is not None and cache.load(tensors):
            return sum(tensor.nbytes for tensor in tensors.values())
        shown = self.config.load_progress and self.rank == 0
        with loading_progress(shown) as on_progress:
            count = load_weights(self._model_dir, model.shards(), on_progress, tied)
        if cache is not None:
            cache.save(tensors)
        return count

    def _load_small(self) -> "Worker | None":
        """The model that proposes tokens, a worker of its own beside rank 0's."""
        config, path = self.config, self.config.draft_model_path
        if self.rank != 0 or config.speculation != "draft" or path is None:
            return None
        longest = read_model_config(Path(path)).max_position
        settings = msgspec.structs.replace(
            config,
            model_path=path,
            tensor_parallel_size=1,
            max_model_len=config.max_model_len and min(longest, config.max_model_len),
            speculation="off",
            pin_ranks=False,
        )
        small = Worker(settings, 0, TPGroup())
        small.load()
        return small

    def _weight_cache(self, layout: str) -> WeightCache | None:
        if self.config.weight_cache_dir is None or self.device.is_cuda:
            return None
        facts = [layout, self._dtype, self.config.quantization, self.config.deterministic]
        key = cache_key(self._model_dir, facts)
        folder = Path(self.config.weight_cache_dir)
        return WeightCache(folder, key, self.rank, self.group.size)

    @torch.inference_mode()
    def num_kv_blocks(self) -> int:
        """Blocks of the KV cache, dummy block included; the smallest of what the ranks can hold.

        Raises:
            ValueError: not even one block fits.
        """
        token_bytes = self._kv_bytes_per_token()
        config = self.config
        max_model_len = config.max_model_len or self.model_config.max_position
        needed = config.max_num_seqs * -(-max_model_len // config.block_size) + 1
        if config.num_kv_blocks is not None:
            return config.num_kv_blocks
        if config.kv_cache_gib is not None:
            room = int(config.kv_cache_gib * GIB) // self.group.size
        elif self.device.is_cuda:
            room = self._cuda_room()
        else:
            share = int(self.device.free_memory() * CPU_KV_SHARE)
            room = min(share, CPU_KV_BYTES) // self.group.size
        with advised(self._plan, config):
            blocks = num_kv_blocks(room, token_bytes, config.block_size)
        if config.kv_cache_gib is None:
            blocks = min(blocks, needed)
        offered = torch.tensor([blocks], dtype=torch.int64, device=self.device.torch_device)
        return int(self.group.all_gather(offered).min())

    @torch.inference_mode()
    def init_kv_cache(self, num_blocks: int) -> None:
        """Allocate the zero-filled cache and the batch, and warm the model up.

        Raises:
            ValueError: max_model_len does not fit the model or the cache.
        """
        config, model = self.config, self._loaded()
        positions = self.model_config.max_position
        with advised(self._plan, config):
            max_model_len = fit_max_model_len(
                config.max_model_len, positions, num_blocks, config.block_size
            )
        kv_cache = self._allocate(num_blocks)
        batch = InputBatch(
            config.max_num_seqs,
            max_model_len,
            config.block_size,
            self.model_config.eos_token_ids,
            self.device.torch_device,
        )
        sampler = Sampler(
            self.group, self.model_config.vocab_size, self._num_real_tokens, self._kernels
        )
        eos_token_ids, vocab_size = self.model_config.eos_token_ids, self.model_config.vocab_size
        if not self.device.is_cuda:
            keep_freed_memory()
        run_dummy(model, self._backend, kv_cache, num_tokens=2)
        self._runner = ModelRunner(
            model,
            self._backend,
            kv_cache,
            batch,
            sampler,
            RowGrammars(self._grammars, vocab_size, eos_token_ids),
            self._speculator(num_blocks),
            self._record(kv_cache, max_model_len),
        )
        self.group.limit(config.step_timeout_s)
        kv_bytes = num_blocks * config.block_size * self._kv_bytes_per_token()
        log_memory(self._plan, self.device, self.rank, kv_bytes)
        self._facts = WorkerFacts(
            vocab_size=self.model_config.vocab_size,
            num_real_tokens=self._num_real_tokens,
            eos_token_ids=self.model_config.eos_token_ids,
            max_model_len=max_model_len,
            num_kv_blocks=num_blocks,
            block_size=config.block_size,
            kv_bytes_per_token=self._kv_bytes_per_token(),
            weight_bytes=self._weight_bytes,
            device=self.device.name,
            dtype=str(self._dtype).removeprefix("torch."),
            attention_backend=self._backend.name,
            kernels=f"{self._kernels.signature()}; attention {self._backend.signature}; "
            f"collectives {self.group.collectives}",
        )

    def _speculator(self, num_blocks: int) -> Speculator | None:
        """Rank 0's; the others take what it proposes from the next frame."""
        config, most = self.config, self.config.num_speculative_tokens
        if self.rank != 0 or config.speculation == "off" or not most:
            return None
        proposer: Proposer = NgramProposer(config.max_num_seqs, most)
        if self._small is not None:
            proposer = self._small.as_proposer(num_blocks, self._num_real_tokens, most)
        return Speculator(proposer, config.max_num_seqs, most)

    def as_proposer(self, num_blocks: int, num_target_tokens: int, max_draft: int) -> DraftModel:
        """This model, loaded, as one that proposes tokens to another with as many KV blocks."""
        self.init_kv_cache(num_blocks)
        assert self._runner is not None
        limits = DraftLimits(
            self.facts.max_model_len, num_blocks, self.config.block_size, num_target_tokens
        )
        return DraftModel(self._runner.execute, limits, max_draft)

    @torch.inference_mode()
    def execute(self, frame: SchedulerOutput) -> ModelRunnerOutput | None:
        """Run one step; rank 0 answers, the others return None.

        Raises:
            FrameError: the frame contradicts the rows this rank mirrors.
            RuntimeError: a collective failed, usually because another rank is gone.
        """
        assert self._runner is not None, "init_kv_cache first"
        output = self._runner.execute(frame)
        return output if self.rank == 0 else None

    def _loaded(self) -> Decoder:
        assert self._model is not None, "load first"
        return self._model

    def _kv_bytes_per_token(self) -> int:
        shape = self.model_config.shape
        return kv_bytes_per_token(shape, self.group.size, self._dtype.itemsize)

    def _allocate(self, num_blocks: int) -> list[Tensor]:
        config = self.model_config
        heads = config.num_kv_heads // self.group.size
        return [
            allocate_kv_layer(
                num_blocks,
                self.config.block_size,
                heads,
                config.head_dim,
                self._dtype,
                self.device.torch_device,
            )
            for _ in range(config.num_layers)
        ]

    def _record(self, kv_cache: list[Tensor], max_model_len: int) -> DecodeGraphs | None:
        """The decode steps that will be replayed; None, and a line that says why, if none can."""
        reason = obstacle(self.config, self.device, self._backend, self.group)
        if reason is not None:
            if self.device.is_cuda and self.rank == 0:
                _log.info("no CUDA graphs: %s", reason)
            return None
        sizes = graph_sizes(self.config.cuda_graph_sizes, self.config.max_num_seqs)
        graphs = DecodeGraphs(self._loaded(), self._backend, kv_cache, sizes, max_model_len)
        start, free = time.perf_counter(), self.device.free_memory()
        shown = self.config.load_progress and self.rank == 0
        with recording_progress(shown, len(sizes)) as on_recorded:
            graphs.record(self.device.graph_recorder(), on_recorded)
        _log.info(
            "rank %d: CUDA graphs of %s rows, %.2f GiB in %.1f s",
            self.rank,
            ", ".join(map(str, sizes)),
            (free - self.device.free_memory()) / GIB,
            time.perf_counter() - start,
        )
        return graphs

    def _cuda_room(self) -> int:
        """Bytes the cache may take: our share of the GPU less what is used, a step's peak and what
        recorded steps hold."""
        longest = self.config.max_model_len or self.model_config.max_position
        tokens = min(self.config.max_num_batched_tokens, self.model_config.max_position)
        self.device.reset_peak()
        kv_cache = self._allocate(1)
        run_dummy(self._loaded(), self._backend, kv_cache, tokens)
        self.device.synchronize()
        taken = self.device.peak_above_now()
        if obstacle(self.config, self.device, self._backend, self.group) is None:
            sizes = graph_sizes(self.config.cuda_graph_sizes, self.config.max_num_seqs)
            graphs = partial(DecodeGraphs, self._loaded(), self._backend, kv_cache)
            taken += graph_bytes(lambda few: graphs(few, longest), sizes, self.device)
        total, free = self.device.total_memory(), self.device.free_memory()
        return int(total * self.config.gpu_memory_utilization) - (total - free) - taken


def _num_real_tokens(model_dir: Path, vocab_size: int) -> int:
    """One more than the tokenizer's highest id; the whole vocabulary without a tokenizer."""
    path = model_dir / "tokenizer.json"
    if not path.exists():
        return vocab_size
    ids = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values()
    return min(max(ids) + 1, vocab_size)
