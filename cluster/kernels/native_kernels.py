"""NativeKernels: the dense operations by the compiled extension, on CPUs.

Owns the packed matrix and which of the extension's variants serves how many rows. A row's result
never depends on its neighbours as long as one variant serves: every variant adds a row's products
in the same order whatever stands beside it.

    bfloat16 [ceil(N / 32), ceil(K / 2), 32, 2]   one 64-byte load = 16 outputs x 2 inputs
    float32  [ceil(N / 32), K, 32]                one 64-byte load = 16 outputs
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.kernels.int8 import NativeInt8Weight
from cluster.kernels.kernels import DrawOffered, LinearWeight


class RowClass(NamedTuple):
    """Who multiplies when at least `first_row` rows come together."""

    first_row: int
    variant: int
    """An index into the extension's `linear_variants`, or UNPACKED."""
    label: str


_LAYOUTS = {
    "bf16": "bf16 panels of 32 outputs x 2 inputs",
    "int8": "int8 panels of 32 outputs x 4 inputs",
    "fp32": "fp32 panels of 32 outputs",
}
UNPACKED = -1
"""torch's own product over a matrix that is unpacked for the call: pays with matrix engines."""


class RowClasses:
    """Who multiplies how many rows: classes in growing order of `first_row`, the first from 1."""

    def __init__(self, classes: Sequence[RowClass]) -> None:
        self._classes = classes
        self._starts = [entry.first_row for entry in classes]

    def variant(self, rows: int) -> int:
        return self._classes[max(bisect.bisect_right(self._starts, rows) - 1, 0)].variant

    def __iter__(self) -> Iterator[RowClass]:
        return iter(self._classes)


class PackedWeight:
    """[N, K] in bfloat16."""

    def __init__(self, native: Any, n: int, k: int, bias: bool, classes: RowClasses) -> None:
        self.shape = (n, k)
        self.bias = torch.zeros(n, dtype=torch.bfloat16) if bias else None
        self._native = native
        self._packed: Tensor = native.empty_packed(n, k)
        self._classes = classes

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def tensors(self) -> dict[str, Tensor]:
        return {"packed": self._packed} | ({} if self.bias is None else {"bias": self.bias})

    def write(self, row: int, rows: Tensor) -> None:
        self._native.pack_rows_(self._packed, rows.to(torch.bfloat16), row, *self.shape)

    def __call__(self, x: Tensor, full_precision: bool = False) -> Tensor:
        variant = self._classes.variant(x.shape[0])
        if variant == UNPACKED and not full_precision:
            return F.linear(x, self._native.unpack_linear(self._packed, *self.shape), self.bias)
        dtype = torch.float32 if full_precision else torch.bfloat16
        product: Tensor = self._native.linear(
            x, self._packed, self.shape[0], self.bias, dtype, max(variant, 0)
        )
        return product

    def embedding(self, ids: Tensor) -> Tensor:
        rows: Tensor = self._native.packed_embedding(self._packed, *self.shape, ids)
        return rows


class PackedFloatWeight:
    """[N, K] in float32: an input takes the bits of a pair in bfloat16, and is packed like one."""

    def __init__(self, native: Any, n: int, k: int, bias: bool) -> None:
        self.shape = (n, k)
        self.bias = torch.zeros(n) if bias else None
        self._native = native
        self._bits: Tensor = native.empty_packed(n, 2 * k)
        self._packed: Tensor = self._bits.view(torch.float32).squeeze(-1)

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def tensors(self) -> dict[str, Tensor]:
        return {"packed": self._packed} | ({} if self.bias is None else {"bias": self.bias})

    def write(self, row: int, rows: Tensor) -> None:
        n, k = self.shape
        bits = rows.float().view(torch.bfloat16)
        self._native.pack_rows_(self._bits, bits, row, n, 2 * k)

    def __call__(self, x: Tensor, full_precision: bool = False) -> Tensor:
        product: Tensor = self._native.linear_float32(x, self._packed, self.shape[0], self.bias)
        return product

    def embedding(self, ids: Tensor) -> Tensor:
        n, k = self.shape
        bits: Tensor = self._native.packed_embedding(self._bits, n, 2 * k, ids)
        return bits.view(torch.float32)


class NativeKernels:
    """The compiled extension, over matrices of one format."""

    name = "native"
    draw_offered: DrawOffered | None = None

    def __init__(
        self,
        native: Any,
        instructions: str,
        matrices: Literal["bf16", "int8", "fp32"],
        classes: Sequence[RowClass] = (),
    ) -> None:
        """`classes`: who multiplies; float32 matrices have one variant and need none."""
        self.native = native
        self.layout = _LAYOUTS[matrices]
        self._instructions = instructions
        self._matrices = matrices
        self._classes = RowClasses(classes)

    def linear_weight(self, n: int, k: int, bias: bool = False) -> LinearWeight:
        if self._matrices == "int8":
            return NativeInt8Weight(self.native, n, k, bias, self._classes.variant)
        if self._matrices == "fp32":
            return PackedFloatWeight(self.native, n, k, bias)
        return PackedWeight(self.native, n, k, bias, self._classes)

    def head_weight(self, n: int, k: int) -> LinearWeight:
        return self.linear_weight(n, k)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed: Tensor = self.native.rms_norm(x, weight, eps)
        return normed

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        normed: Tensor = self.native.add_rms_norm(x, residual, weight, eps)
        return normed, residual

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        product: Tensor = self.native.silu_and_mul(gate_up)
        return product

    def row_argmax(self, logits: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = self.native.row_argmax(logits, limit)
        return found

    def signature(self) -> str:
        parts = [f"native in {self.layout}"]
        if self._matrices == "bf16":  # the others' variants agree to the bit
            names = self.native.linear_variants()
            parts += [
                f"{c.first_row} {'torch' if c.variant == UNPACKED else names[c.variant]}"
                for c in self._classes
            ]
        return ", ".join(parts)

    def describe(self) -> list[str]:
        lines = [f"dense layers: native (this CPU runs {self._instructions})"]
        if self._matrices == "int8":
            lines.append("linear: 8-bit products, activations quantised row by row")
        if self._matrices == "fp32":
            lines.append("linear: fp32")
        return lines + [f"linear from {c.first_row} rows: {c.label}" for c in self._classes]
