"""Which attention backend serves on this machine, and why.

Owns the choice; the only module that knows every backend.
"""

import time

import torch

from cluster.attention.backend import (
    AttentionBackend,
    AttentionMetadata,
    RotaryTable,
    allocate_kv_layer,
)
from cluster.attention.cpu import TorchAttention
from cluster.attention.native import NativeAttention
from cluster.config import EngineConfig
from cluster.device import Device
from cluster.kernels.kernels import Kernels
from cluster.kernels.native_kernels import NativeKernels

PROBE_TOKENS, PROBE_HEAD_DIM, PROBE_ROUNDS = 256, 64, 3


def select_attention(
    config: EngineConfig, device: Device, kernels: Kernels, kv_width: int, dtype: torch.dtype
) -> AttentionBackend:
    """The backend of the config's name; `kv_width`: K * H of one rank.

    Raises:
        ValueError: it does not exist for this device.
    """
    if config.attention_backend not in ("auto", "cpu"):
        raise ValueError(
            f"attention_backend {config.attention_backend!r} is not available on {device.name}: "
            "use 'auto'"
        )
    if isinstance(kernels, NativeKernels):
        if config.deterministic:  # the one that every CPU has: measured choices may differ
            return NativeAttention(kernels.native, config.block_size, 0)
        variants = range(len(kernels.native.attention_variants()))
        backends = [NativeAttention(kernels.native, config.block_size, v) for v in variants]
        return min(backends, key=lambda backend: _seconds(backend, config.block_size, dtype))
    return TorchAttention(config.block_size, kv_width, dtype)


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
