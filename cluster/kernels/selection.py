"""Which kernels serve on this machine: measured where several could, never chosen by a flag alone.

Owns the choice, its measurements and its reasons. Knows no layers.
"""

import importlib.util
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from cluster.config import EngineConfig
from cluster.device import Device
from cluster.kernels import native
from cluster.kernels.fp8 import CAPABILITY
from cluster.kernels.int8 import NativeInt8Weight
from cluster.kernels.kernels import Kernels
from cluster.kernels.native_kernels import UNPACKED, NativeKernels, RowClass
from cluster.kernels.torch_kernels import NEVER, TorchKernels

PROBES = ((1, 4), (9, 32), (65, 256))
"""(first row of a class, rows it is measured with)"""
SIZE = 1024
"""The probe's matrix is SIZE x SIZE: 2 MiB, a core's second-level cache."""
ROUNDS = 5


def select_kernels(device: Device, dtype: torch.dtype, config: EngineConfig) -> Kernels:
    """The kernels of one rank.

    Raises:
        RuntimeError: `kernels: native` or `deterministic` is asked for and cannot be had; the
            message says why.
        ValueError: the quantisation does not exist on this device.
    """
    if config.quantization == "fp8" and device.is_cuda and device.capability < CAPABILITY:
        raise ValueError(
            f"{device.name} has compute capability {'.'.join(map(str, device.capability))}, but "
            f"quantization: fp8 needs {'.'.join(map(str, CAPABILITY))} or newer (Ada, Hopper): use "
            "quantization: none"
        )
    has_triton = device.is_cuda and importlib.util.find_spec("triton") is not None
    if has_triton and config.kernels == "auto":
        return _triton_kernels(device, dtype, config)
    extension, reason = _native(device, dtype, config)
    if extension is not None:
        return _native_kernels(extension, reason, dtype, config)
    if config.kernels == "native" or config.deterministic:
        asked = "kernels: native" if config.kernels == "native" else "deterministic: true"
        raise RuntimeError(f"{asked} cannot be served: {reason}")
    plain = device.is_cuda or dtype is torch.float32 or config.quantization != "none"
    widen_from = NEVER if plain else _measure_widening()
    return TorchKernels(device.torch_device, dtype, reason, widen_from, config.quantization)


def _native(device: Device, dtype: torch.dtype, config: EngineConfig) -> tuple[Any, str]:
    """(the extension, its instructions) or (None, why it does not serve)."""
    if config.kernels == "torch":
        return None, "kernels: torch"
    if device.is_cuda:
        cause = "the device is a GPU"
        return None, cause if config.kernels == "native" else f"{cause}, triton cannot be imported"
    if config.quantization == "fp8":
        return None, "the compiled kernels do not compute fp8; use quantization: int8"
    if dtype is torch.float32 and config.quantization != "none":
        return None, "compiled int8 takes bfloat16 activations; set dtype: bfloat16"
    extension, about = native.load()
    if extension is not None and config.quantization == "int8" and not extension.int8_variants():
        return None, "this CPU lacks the 8-bit dot product"
    return extension, about if extension is not None else f"the compiled kernels are {about}"


def _triton_kernels(device: Device, dtype: torch.dtype, config: EngineConfig) -> Kernels:
    from cluster.kernels.triton_kernels import TritonKernels

    return TritonKernels(device.torch_device, dtype, config.quantization, config.deterministic)


def _native_kernels(
    extension: Any, instructions: str, dtype: torch.dtype, config: EngineConfig
) -> NativeKernels:
    if config.quantization == "int8":
        return NativeKernels(extension, instructions, "int8", _measure_int8(extension))
    if dtype is torch.float32:
        return NativeKernels(extension, instructions, "fp32")
    classes = _one_class(extension) if config.deterministic else _measure_bf16(extension)
    return NativeKernels(extension, instructions, "bf16", classes)


def _one_class(extension: Any) -> list[RowClass]:
    """What serves in deterministic mode: for any rows the variant that every CPU of the extension
    has. A measured choice could differ between ranks, or tomorrow."""
    last = len(extension.linear_variants()) - 1
    return [RowClass(1, last, f"{extension.linear_variants()[last]} (fixed: deterministic)")]


Names = Mapping[int, str]
"""Of variants."""
Product = Callable[[int, torch.Tensor], torch.Tensor]
"""(variant, x [M, SIZE]) -> x W^T."""


def _measure_bf16(extension: Any) -> list[RowClass]:
    """The fastest variant of each class of rows; with many rows torch's own may be."""
    packed = extension.empty_packed(SIZE, SIZE)
    extension.pack_rows_(packed, torch.randn(SIZE, SIZE).to(torch.bfloat16), 0, SIZE, SIZE)

    def product(variant: int, x: torch.Tensor) -> torch.Tensor:
        if variant == UNPACKED:
            return F.linear(x, extension.unpack_linear(packed, SIZE, SIZE))
        result: torch.Tensor = extension.linear(x, packed, SIZE, None, x.dtype, variant)
        return result

    names = dict(enumerate(extension.linear_variants()))
    return _measure_classes(product, names, names | {UNPACKED: "torch"})


def _measure_int8(extension: Any) -> list[RowClass]:
    weight = NativeInt8Weight(extension, SIZE, SIZE, bias=False, variant=lambda rows: 0)
    weight.write(0, torch.randn(SIZE, SIZE))
    names = dict(enumerate(extension.int8_variants()))

    def product(variant: int, x: torch.Tensor) -> torch.Tensor:
        return weight.product(x, variant)

    return _measure_classes(product, names, names)


def _measure_classes(product: Product, few: Names, many: Names) -> list[RowClass]:
    """`few`, `many`: the variants that compete, with few and with many rows."""
    classes = []
    for first_row, rows in PROBES:
        x = torch.randn(rows, SIZE).to(torch.bfloat16)
        names = many if rows > SIZE // 8 else few
        taken = {variant: _seconds(partial(product, variant, x)) for variant in names}
        best = min(taken, key=taken.__getitem__)
        classes.append(RowClass(first_row, best, _label(taken, names)))
    return classes


def _label(taken: dict[int, float], names: Names) -> str:
    """`bf16dot (0.21 ms; fp32fma 0.40, torch 0.55)`"""
    ranking = sorted(taken, key=taken.__getitem__)
    others = ", ".join(f"{names[v]} {taken[v] * 1e3:.2f}" for v in ranking[1:])
    first = f"{names[ranking[0]]} ({taken[ranking[0]] * 1e3:.2f} ms"
    return f"{first}; {others})" if others else f"{first})"


def _measure_widening() -> int:
    """Rows from which bfloat16 products are faster in float32, widening the matrix every time."""
    weight = torch.randn(SIZE, SIZE).to(torch.bfloat16)
    for first_row, rows in PROBES[1:]:
        x = torch.randn(rows, SIZE).to(torch.bfloat16)
        if _seconds(partial(_widened, x, weight)) < _seconds(partial(F.linear, x, weight)):
            return first_row
    return NEVER


def _widened(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(x.float(), weight.float()).to(x.dtype)


def _seconds(run: Callable[[], torch.Tensor]) -> float:
    """The best of some rounds."""
    run()
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
