"""The plan held against the real device: what a rank may take, and what it does take.

Owns the bridge from settings and device to `cluster.plan`: the refusal before any weight is read,
the settings named beside every other sizing error, the line that compares plan and fact. Loads no
torch: whoever only measures ranks asks it too.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config import EngineConfig
from cluster.model.model_config import ModelConfig
from cluster.plan.deployment import Deployment, advice
from cluster.plan.devices import DeviceSpec
from cluster.plan.memory import GIB, Precision, kv_bytes_per_token

if TYPE_CHECKING:
    from cluster.device import Device

_log = logging.getLogger(__name__)


def device_spec(device: "Device") -> DeviceSpec:
    """Its memory; what it computes and costs is of no interest here."""
    return DeviceSpec(
        name=device.name,
        memory_gib=device.total_memory() / GIB,
        gb_per_s=1.0,
        tflops=1.0,
        tflops_8bit=1.0,
        price_per_hour=0.0,
        is_cpu=not device.is_cuda,
    )


def plan_rank(
    config: EngineConfig,
    model: ModelConfig,
    device: DeviceSpec,
    number_bytes: int,
    knows_words: bool,
) -> Deployment:
    """The plan of a replica on this device.

    Args:
        number_bytes: of what is not quantised.
        knows_words: whether ranks hold the vocabulary.
    """
    linear = number_bytes if config.quantization == "none" else 1
    kept = 1 if config.kv_cache_dtype == "fp8" else number_bytes
    head = 1 if config.quantization == "int8" else number_bytes
    cache = None if config.kv_cache_gib is None else int(config.kv_cache_gib * GIB)
    if config.num_kv_blocks is not None:
        token_bytes = kv_bytes_per_token(model.shape, 1, kept)
        cache = config.num_kv_blocks * config.block_size * token_bytes
    return Deployment(
        shape=model.shape,
        max_position=model.max_position,
        device=device,
        tp=config.tensor_parallel_size,
        precision=Precision(linear=linear, head=head, other=number_bytes, kv=kept),
        max_model_len=config.max_model_len,
        utilization=config.gpu_memory_utilization,
        kv_cache_bytes=cache,
        max_num_seqs=config.max_num_seqs,
        block_size=config.block_size,
        knows_words=knows_words,
    )


def check_weights(plan: Deployment) -> None:
    """Raises ValueError, naming settings that would fit, where the weights alone are too many."""
    usable = plan.device.memory_bytes // (plan.tp if plan.device.is_cpu else 1)
    if plan.weight_bytes > usable:
        raise ValueError(
            f"{plan.weight_bytes / GIB:.2f} GiB of weights a rank do not fit "
            f"{usable / GIB:.2f} GiB of {plan.device.name}{advice(plan)}"
        )


@contextlib.contextmanager
def advised(plan: Deployment, config: EngineConfig) -> Iterator[None]:
    """A sizing error from within also names the settings that would fit."""
    try:
        yield
    except ValueError as error:
        # A pool of a given number of blocks follows no other setting.
        told = "" if config.num_kv_blocks is not None else advice(plan)
        raise ValueError(f"{error}{told}") from None


def log_memory(plan: Deployment, device: "Device", rank: int, kv_bytes: int) -> None:
    """What the rank takes now, beside what the plan says of it with so much KV cache."""
    _log.info(
        "rank %d: %.2f GiB in use, KV cache of %.2f GiB included (planned: %.2f GiB)",
        rank,
        used_bytes(device) / GIB,
        kv_bytes / GIB,
        plan.taken_bytes(kv_bytes) / GIB,
    )


def used_bytes(device: "Device") -> int:
    """Of the GPU, whoever uses it; on a CPU what of this process is resident."""
    if device.is_cuda:
        return device.total_memory() - device.free_memory()
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
