"""Which attention backend serves on this machine, and why.

Owns the choice on CPUs; `gpu_selection` has the rule for GPUs. Nothing else knows every backend.
"""

import logging
import time
from typing import Any

import torch

from cluster.attention.backend import (
    AttentionBackend,
    AttentionMetadata,
    HeadShape,
    RotaryTable,
    allocate_kv_layer,
)
from cluster.attention.cpu import TorchAttention
from cluster.attention.gpu_selection import Choice, select_on_gpu
from cluster.attention.native import NativeAttention
from cluster.config import EngineConfig
from cluster.device import Device
from cluster.kernels.kernels import Kernels
from cluster.kernels.native_kernels import NativeKernels

_log = logging.getLogger(__name__)

PROBE_TOKENS, PROBE_HEAD_DIM, PROBE_ROUNDS = 256, 64, 3


def select_attention(
    config: EngineConfig, device: Device, kernels: Kernels, shape: HeadShape
) -> AttentionBackend:
    """The backend of the config's name, or the best for this device; the log says why.

    Raises:
        ValueError: it does not exist for this device.
    """
    chosen = _choose(config, device, kernels, shape)
    _log.info("attention: %s", chosen.reason)
    return chosen.backend


def _choose(config: EngineConfig, device: Device, kernels: Kernels, shape: HeadShape) -> Choice:
    if device.is_cuda and config.attention_backend != "cpu":
        return select_on_gpu(config, device, shape)
    if config.attention_backend not in ("auto", "cpu"):
        raise ValueError(
            f"attention_backend {config.attention_backend!r} is not available on {device.name}: "
            "use 'auto'"
        )
    if isinstance(kernels, NativeKernels) and config.kv_cache_dtype != "fp8":
        return _native(config, kernels.native, shape.dtype)
    kv_width = shape.num_kv_heads * shape.head_dim
    backend = TorchAttention(config.block_size, kv_width, shape.dtype)
    reason = "asked for" if device.is_cuda else "the compiled kernels do not serve"
    if config.kv_cache_dtype == "fp8":
        reason = "the only one on CPUs that reads an fp8 cache, for its numbers alone"
    return Choice(backend, f"{backend.signature} ({reason})")


def _native(config: EngineConfig, native: Any, dtype: torch.dtype) -> Choice:
    if config.deterministic:
        backend = NativeAttention(native, config.block_size, 0)
        return Choice(backend, f"{backend.signature} (fixed: deterministic)")
    variants = range(len(native.attention_variants()))
    backends = [NativeAttention(native, config.block_size, v) for v in variants]
    best = min(backends, key=lambda backend: _seconds(backend, config.block_size, dtype))
    return Choice(best, f"{best.signature} (the fastest of {len(backends)})")


def _seconds(backend: AttentionBackend, block_size: int, dtype: torch.dtype) -> float:
    """One prefill of PROBE_TOKENS over one head, the best of some rounds."""
    cpu = torch.device("cpu")
    positions = torch.arange(PROBE_TOKENS)
    pages = -(-PROBE_TOKENS // block_size)
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, PROBE_TOKENS], dtype=torch.int32),
        seq_lens_k=torch.tensor([PROBE_TOKENS], dtype=torch.int32),
        block_table=torch.arange(1, pages + 1, dtype=torch.int32).unsqueeze(0),
        positions=positions,
        slot_mapping=positions + block_size,
        max_q=PROBE_TOKENS,
        max_k=PROBE_TOKENS,
        num_decode=0,
    )
    kv_layer = allocate_kv_layer(pages + 1, block_size, 1, PROBE_HEAD_DIM, dtype, cpu)
    qkv = torch.randn(PROBE_TOKENS, 6, PROBE_HEAD_DIM).to(dtype)
    still = torch.zeros(PROBE_TOKENS, PROBE_HEAD_DIM // 2)
    best = float("inf")
    for _ in range(PROBE_ROUNDS):
        start = time.perf_counter()
        backend.plan(metadata).attend(kv_layer, qkv.clone(), RotaryTable(still.cos(), still.sin()))
        best = min(best, time.perf_counter() - start)
    return best
