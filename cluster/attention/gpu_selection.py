"""Which attention backend serves on a GPU: the rule by capability, and what stands against each.

    Hopper (9.x) ............ flash_attn 3, else flash_attn 2, else triton
    Ampere, Ada (8.x) ....... flash_attn 2, else triton
    Blackwell (10, 12) ...... triton
    an fp8 cache ............ triton, from 8.9 on

Owns the rule and its reasons. A library counts as there when it can be imported: one that was built
for another torch cannot.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from cluster.attention.backend import AttentionBackend, HeadShape
from cluster.config import EngineConfig
from cluster.device import Device

HOPPER, AMPERE, BLACKWELL = (9, 0), (8, 0), (10, 0)
FP8_CAPABILITY = (8, 9)
"""The first GPUs that convert e4m3: Ada, then Hopper."""


class Choice(NamedTuple):
    """A backend, and the line that says why it and not another."""

    backend: AttentionBackend
    reason: str


class _Unfit(Exception):
    """Why a backend cannot serve."""


def select_on_gpu(config: EngineConfig, device: Device, shape: HeadShape) -> Choice:
    """The first of the rule that can serve, or the one that is asked for.

    Raises:
        ValueError: none can, or not the one that is asked for; the message says why and what else
            would.
    """
    makers: list[tuple[str, Callable[[EngineConfig, Device, HeadShape], AttentionBackend]]] = [
        ("flash_attn 3", _flash3),
        ("flash_attn 2", _flash2),
        ("triton", _triton),
    ]
    rejected = []
    for name, make in makers:
        if config.attention_backend not in ("auto", name.split()[0]):
            continue
        try:
            backend = make(config, device, shape)
        except _Unfit as unfit:
            rejected.append(f"{name}: {unfit}")
            continue
        why = f" ({'; '.join(rejected)})" if rejected else ""
        about = f"{backend.signature}, pages of {config.block_size}, for prefill and decode{why}"
        return Choice(backend, about)
    other = "" if config.attention_backend == "auto" else "use 'auto', or "
    raise ValueError(
        f"attention_backend {config.attention_backend!r} is not available on {device.name} "
        f"({'; '.join(rejected)}): {other}use 'cpu' for plain torch"
    )


def _flash3(config: EngineConfig, device: Device, shape: HeadShape) -> AttentionBackend:
    if not HOPPER <= device.capability < BLACKWELL:
        raise _Unfit("it is for Hopper")
    _check_flash(config, shape)
    library = _imported("flash_attn_interface")
    from cluster.attention.flash import Flash3Attention

    return Flash3Attention(library, shape, config.deterministic)


def _flash2(config: EngineConfig, device: Device, shape: HeadShape) -> AttentionBackend:
    if not AMPERE <= device.capability < BLACKWELL:
        raise _Unfit("it is for Ampere, Ada and Hopper")
    _check_flash(config, shape)
    library = _imported("flash_attn")
    if not hasattr(library, "flash_attn_with_kvcache"):
        raise _Unfit("flash_attn is there, but not its generation 2")
    from cluster.attention.flash import Flash2Attention

    return _fitting(
        lambda: Flash2Attention(library, config.block_size, shape, config.deterministic)
    )


def _triton(config: EngineConfig, device: Device, shape: HeadShape) -> AttentionBackend:
    if config.kv_cache_dtype == "fp8" and device.capability < FP8_CAPABILITY:
        raise _Unfit("an fp8 cache needs a GPU of 8.9 or newer; set kv_cache_dtype: auto")
    _imported("triton")
    from cluster.attention.triton.attention import TritonAttention

    return _fitting(
        lambda: TritonAttention(
            config.block_size,
            shape,
            max(config.max_num_seqs, 1 + config.num_speculative_tokens),
            device.capability,
            device.num_processors,
            config.deterministic,
        )
    )


def _check_flash(config: EngineConfig, shape: HeadShape) -> None:
    if config.kv_cache_dtype == "fp8":
        raise _Unfit("it reads no fp8 cache here; set kv_cache_dtype: auto")
    if shape.dtype not in (torch.bfloat16, torch.float16):
        raise _Unfit("it computes no float32; set dtype: bfloat16")
    _imported("triton")  # which stores the keys


def _imported(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        raise _Unfit(f"{name} is not installed")
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a library of CUDA that is not there
        raise _Unfit(f"{name} cannot be imported: {error}") from None


def _fitting(make: Callable[[], AttentionBackend]) -> AttentionBackend:
    try:
        return make()
    except ValueError as error:
        raise _Unfit(str(error)) from None
