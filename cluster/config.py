"""EngineConfig: every setting of one engine replica.

Owns names, defaults and bounds. Refuses unknown keys. Knows no environment and no files: facts
found at start-up (number of KV blocks, end-of-sequence ids) are return values elsewhere, never
written back here.
"""

from typing import Literal

import msgspec


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one tensor-parallel engine replica (at most 30 fields).

    Raises:
        ValueError: a value is out of bounds; the message names the field and the remedy.
    """

    model_path: str
    tensor_parallel_size: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention_backend: Literal["auto", "cpu", "flash_attn", "triton"] = "auto"
    max_model_len: int | None = None
    """Longest prompt + output in tokens; None takes the checkpoint's max_position_embeddings."""
    block_size: int = 16
    """Tokens per KV block, which is also the granularity of the prefix cache."""
    num_kv_blocks: int | None = None
    """KV blocks per replica; None sizes the pool from kv_cache_gib or the device's free memory."""
    kv_cache_gib: float | None = None
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """How keys and values are kept: as they are computed, or rounded to e4m3, in half the bytes."""
    gpu_memory_utilization: float = 0.92
    max_num_seqs: int = 64
    """Requests computed in one step at most."""
    max_num_batched_tokens: int = 2048
    """Token budget of one step, prefill chunks and decodes together."""
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    target_gap_ms: float | None = None
    """Longest wait between two tokens of a running stream that a prompt's chunks may cause; None
    lets a step take max_num_batched_tokens whatever it costs."""
    cuda_graph_sizes: tuple[int, ...] | None = None
    """Numbers of tokens of which steps of decodes and drafts are recorded as CUDA graphs; None:
    about twenty, up to max_num_seqs; [] switches graphs off."""
    async_scheduling: bool | None = None
    """Plan one step ahead of the one being computed; None: where the device computes by itself."""
    quantization: Literal["none", "int8", "fp8"] = "none"
    """How linear weights are kept: as in the checkpoint, or quantised while they are loaded."""
    deterministic: bool = False
    """The same tokens and logprob bits for a request whatever else is in the batch."""
    speculation: Literal["off", "ngram", "draft"] = "ngram"
    """Who proposes tokens ahead; a proposer that loses time switches itself off."""
    num_speculative_tokens: int = 8
    """Most tokens proposed ahead of one row in one step."""
    draft_model_path: str | None = None
    """The small model that `speculation: draft` proposes with."""
    kernels: Literal["auto", "native", "torch"] = "auto"
    """Who computes around and, on CPUs, within the products: `auto` takes Triton on a GPU, on a CPU
    what is there and measured faster of the compiled extension (`native`) and plain torch."""
    collectives: Literal["auto", "shm", "gloo", "nccl"] = "auto"
    """How ranks of one host add up: `auto` takes shared memory between CPUs and symmetric memory
    between GPUs where it can be had, else gloo and nccl; each of these may be asked for."""
    weight_cache_dir: str | None = None
    """Where each rank keeps its slices as it holds them, for the next start; None keeps none."""
    threads_per_rank: int | None = None
    """None shares the cores this process may use among the ranks."""
    pin_ranks: bool | None = None
    """Pin each CPU rank to cores of its own; None: when several ranks share a host's cores."""
    step_timeout_s: float = 30.0
    """A step older than this means that a rank hangs; the gang is then declared dead."""
    load_progress: bool = True

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "max_num_seqs", "threads_per_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not all(1 <= size <= self.max_num_seqs for size in self.cuda_graph_sizes or ()):
            raise ValueError(
                f"cuda_graph_sizes must lie between 1 and max_num_seqs ({self.max_num_seqs}); "
                "leave it out for the usual ones, or set it to [] for no graphs"
            )
        if self.num_speculative_tokens < 0:
            raise ValueError("num_speculative_tokens must be 0 or more")
        if self.target_gap_ms is not None and self.target_gap_ms <= 0:
            raise ValueError("target_gap_ms must be above 0; leave it out for no bound")
        if self.speculation == "draft" and self.draft_model_path is None:
            raise ValueError("speculation: draft needs draft_model_path, a small model's folder")
        if self.block_size < 1 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size must be a power of two, not {self.block_size}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}): every running request needs one token a step"
            )
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ValueError("gpu_memory_utilization must be in (0, 1]")
