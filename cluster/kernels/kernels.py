"""Kernels: what the layers of the model ask of a machine, whoever computes it.

Owns the interface alone. Three implementations answer to it: `torch_kernels.TorchKernels` on any
device, `native_kernels.NativeKernels` with the compiled extension on CPUs, and around torch's
products `triton_kernels.TritonKernels` on GPUs; `selection` decides.

Shape letters: M rows (tokens), K inputs, N outputs, D hidden, F intermediate.
"""

from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor

Quantization = Literal["none", "int8", "fp8"]

DrawOffered = Callable[
    [
        tuple[Tensor, Tensor, Tensor],
        Tensor,
        tuple[Tensor, Tensor, Tensor, Tensor],
        int,
    ],
    tuple[Tensor, Tensor],
]
"""See `triton_draw.draw_offered`."""

ROW_BLOCK = 16
"""Rows are stored in groups of so many by kernels that reorder them."""


class LinearWeight(Protocol):
    """One matrix [N, K] and perhaps a bias [N], kept in the form its kernel wants."""

    shape: tuple[int, int]
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes held, padding and scales included."""

    def tensors(self) -> dict[str, Tensor]:
        """All that is held, as it is held: what a cache keeps for the next start."""

    def write(self, row: int, rows: Tensor) -> None:
        """Take in rows `row ...` [R, K] of the checkpoint's matrix, whatever their dtype.

        Different threads may write different rows at once.
        """

    def __call__(self, x: Tensor, full_precision: bool = False) -> Tensor:
        """[M, K] -> [M, N] = x W^T + bias; `full_precision`: the float32 sums, not rounded."""

    def embedding(self, ids: Tensor) -> Tensor:
        """[T] row numbers -> [T, K]."""


class Kernels(Protocol):
    """The dense operations of a decoder on one device, in one dtype."""

    name: str
    layout: str
    """How matrices are held; a cache of one layout does not serve another."""
    draw_offered: DrawOffered | None
    """Draws among the likeliest ids where the logits are; None: the host does."""

    def linear_weight(self, n: int, k: int, bias: bool = False) -> LinearWeight:
        """An unfilled matrix of N outputs and K inputs."""

    def head_weight(self, n: int, k: int) -> LinearWeight:
        """The same for logits, and for embeddings where they share it: kept as the checkpoint has
        it where rounding it would cost more in answers than it saves in time."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[M, D] -> x / rms(x) * weight; the mean square is taken in float32."""

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(norm(residual + x), residual + x) [M, D]; `residual` may be overwritten."""

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """[M, 2F] = [gate | up] -> silu(gate) * up [M, F]."""

    def row_argmax(self, logits: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the first `limit` numbers of each row [S, V]: (the highest float32, the first index
        that has it int64, whether none is NaN or +inf bool), [S] each."""

    def signature(self) -> str:
        """What may change the bits of a result; of equal settings on equal machines the same,
        unless choices were measured."""

    def describe(self) -> list[str]:
        """One line per choice: the operation, who computes it, and why."""
