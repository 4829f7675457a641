"""NativeKernels: the dense operations by the compiled extension, on CPUs.

Owns the packed matrix and which of the extension's variants serves how many rows. A row's result
never depends on its neighbours as long as one variant serves: every variant adds a row's products
in the same order whatever stands beside it.

    packed  bfloat16 [ceil(N / 16), ceil(K / 2), 16, 2]: one 64-byte load = 16 outputs x 2 inputs
"""

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.kernels.int8 import NativeInt8Weight
from cluster.kernels.kernels import LinearWeight
from cluster.kernels.torch_kernels import PlainWeight


class RowClass(NamedTuple):
    """Who multiplies when at least `first_row` rows come together."""

    first_row: int
    variant: int
    """An index into the extension's `linear_variants`, or UNPACKED."""
    label: str


UNPACKED = -1
"""torch's own product over a matrix that is unpacked for the call: pays with matrix engines."""


class PackedWeight:
    """[N, K] in blocks of 16 outputs."""

    def __init__(
        self, native: Any, n: int, k: int, bias: bool, classes: Sequence[RowClass]
    ) -> None:
        self.shape = (n, k)
        self.bias = torch.zeros(n, dtype=torch.bfloat16) if bias else None
        self._native = native
        self._packed: Tensor = native.empty_packed(n, k)
        self._starts = [entry.first_row for entry in classes]
        self._variants = [entry.variant for entry in classes]

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def tensors(self) -> dict[str, Tensor]:
        return {"packed": self._packed} | ({} if self.bias is None else {"bias": self.bias})

    def write(self, row: int, rows: Tensor) -> None:
        self._native.pack_rows_(self._packed, rows.to(torch.bfloat16), row, *self.shape)

    def __call__(self, x: Tensor, full_precision: bool = False) -> Tensor:
        variant = self._variants[bisect.bisect_right(self._starts, x.shape[0]) - 1]
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


class NativeKernels:
    """The compiled extension."""

    name = "native"
    layout = "bf16 blocks of 16 outputs x 2 inputs"

    def __init__(
        self, native: Any, instructions: str, classes: Sequence[RowClass], int8: bool = False
    ) -> None:
        """`classes`: in growing order of `first_row`, the first from row 1; empty: matrices are
        float32, which torch multiplies."""
        self.native = native
        self._instructions = instructions
        self._classes = classes
        self._int8 = int8
        if int8:
            self.layout = "int8 blocks of 16 outputs x 4 inputs"

    def linear_weight(self, n: int, k: int, bias: bool = False) -> LinearWeight:
        if self._int8:
            return NativeInt8Weight(self.native, n, k, bias)
        if not self._classes:
            return PlainWeight(n, k, bias, torch.device("cpu"), torch.float32)
        return PackedWeight(self.native, n, k, bias, self._classes)

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

    def describe(self) -> list[str]:
        lines = [f"dense layers: native (this CPU runs {self._instructions})"]
        if self._int8:
            return [*lines, "linear: 8-bit dot products, activations quantised row by row"]
        if not self._classes:
            lines.append("linear: torch (float32 matrices are not packed)")
        lines += [f"linear from {c.first_row} rows: {c.label}" for c in self._classes]
        return lines
