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
    gpu_memory_utilization: float = 0.92
    max_num_seqs: int = 64
    """Requests computed in one step at most."""
    max_num_batched_tokens: int = 2048
    """Token budget of one step, prefill chunks and decodes together."""
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    threads_per_rank: int = 1
    pin_ranks: bool = False
    """Pin each CPU rank to threads_per_rank cores of its own."""
    step_timeout_s: float = 30.0
    """A step older than this means that a rank hangs; the gang is then declared dead."""
    load_progress: bool = True

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "max_num_seqs", "threads_per_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.block_size < 1 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size must be a power of two, not {self.block_size}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}): every running request needs one token a step"
            )
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ValueError("gpu_memory_utilization must be in (0, 1]")
