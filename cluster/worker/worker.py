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
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer

from cluster.attention.backend import HeadShape
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
from cluster.plan.memory import GIB, check_tensor_parallel_size, fit_max_model_len
from cluster.worker.draft_model import DraftLimits, DraftModel
from cluster.worker.dummy_step import run_dummy
from cluster.worker.input_batch import InputBatch
from cluster.worker.memory import Beside, RankMemory
from cluster.worker.model_runner import ModelRunner
from cluster.worker.ngram import NgramProposer
from cluster.worker.progress import loading_progress
from cluster.worker.row_grammars import Grammars, RowGrammars
from cluster.worker.sampler import Sampler
from cluster.worker.sizing import advised, check_weights, device_spec, log_memory, plan_rank
from cluster.worker.speculative import Proposer, Speculator
from cluster.worker.step import LaunchedStep

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
    computes_apart: bool
    """Whether steps are computed while the host goes on."""


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
        self._memory = RankMemory(
            config, model, self.device, group, self._dtype, self._backend, self._plan
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
        beside = None if self._small is None else self._small.as_beside()
        return self._memory.num_kv_blocks(self._loaded, beside)

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
        self._memory.fit_scales(model, self._num_real_tokens)
        kv_cache = self._memory.allocate(num_blocks)
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
            self._memory.record(model, kv_cache, max_model_len),
        )
        self.group.limit(config.step_timeout_s)
        kv_bytes = num_blocks * config.block_size * self._memory.kv_bytes_per_token
        log_memory(self._plan, self.device, self.rank, kv_bytes)
        self._facts = WorkerFacts(
            vocab_size=self.model_config.vocab_size,
            num_real_tokens=self._num_real_tokens,
            eos_token_ids=self.model_config.eos_token_ids,
            max_model_len=max_model_len,
            num_kv_blocks=num_blocks,
            block_size=config.block_size,
            kv_bytes_per_token=self._memory.kv_bytes_per_token,
            weight_bytes=self._weight_bytes,
            device=self.device.name,
            dtype=str(self._dtype).removeprefix("torch."),
            attention_backend=self._backend.name,
            kernels=f"{self._kernels.signature()}; attention {self._backend.signature}; "
            f"collectives {self.group.collectives}"
            f"{'; cache fp8' if config.kv_cache_dtype == 'fp8' else ''}",
            computes_apart=self.device.computes_apart,
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

    def as_beside(self) -> Beside:
        """What this model, loaded, takes of a device that it shares with another."""
        memory = self._memory
        return Beside(memory.kv_bytes_per_token, lambda: memory.step_bytes(self._loaded()))

    def as_proposer(self, num_blocks: int, num_target_tokens: int, max_draft: int) -> DraftModel:
        """This model, loaded, as one that proposes tokens to another with as many KV blocks."""
        self.init_kv_cache(num_blocks)
        assert self._runner is not None
        limits = DraftLimits(
            self.facts.max_model_len,
            num_blocks,
            self.config.block_size,
            self.config.max_num_batched_tokens,
            num_target_tokens,
        )
        return DraftModel(self._runner.execute, limits, max_draft)

    @torch.inference_mode()
    def execute(self, frame: SchedulerOutput) -> ModelRunnerOutput | None:
        """Run one step; rank 0 answers, the others return None.

        Raises:
            FrameError: the frame contradicts the rows this rank mirrors.
            RuntimeError: a collective failed, usually because another rank is gone.
        """
        output = self._started().execute(frame)
        return output if self.rank == 0 else None

    @torch.inference_mode()
    def launch(self, frame: SchedulerOutput) -> LaunchedStep:
        """Rank 0's step: the device computes, the host goes on. Raises as `execute` does."""
        return self._started().launch(frame)

    @torch.inference_mode()
    def follow(self, frame: SchedulerOutput | None) -> None:
        """Another rank's step: see `ModelRunner.follow`. Raises as `execute` does."""
        self._started().follow(frame)

    def compile_grammar(self, source: str, done: Callable[[], None]) -> None:
        """Begin to compile a grammar that a row will need; see `GrammarCall`."""
        if self._grammars is None:
            done()
        else:
            self._grammars.compile(source, done)

    def _started(self) -> ModelRunner:
        assert self._runner is not None, "init_kv_cache first"
        return self._runner

    def _loaded(self) -> Decoder:
        assert self._model is not None, "load first"
        return self._model


def _num_real_tokens(model_dir: Path, vocab_size: int) -> int:
    """One more than the tokenizer's highest id; the whole vocabulary without a tokenizer."""
    path = model_dir / "tokenizer.json"
    if not path.exists():
        return vocab_size
    ids = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values()
    return min(max(ids) + 1, vocab_size)
