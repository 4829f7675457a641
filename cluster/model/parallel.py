"""Tensor parallelism: the layers that are split over a group of ranks.

Owns which slice of which checkpoint tensor a rank holds. Refuses process globals: the group is a
constructor argument, and no layer asks who it is. Knows no files and no attention.

    layer                  checkpoint [out, in]   rank r of R holds      afterwards
    ColumnParallelLinear   [O, I] per part        rows    r*O/R ...      nothing: outputs stay local
    RowParallelLinear      [O, I]                 columns r*I/R ...      all-reduce (sum)
    VocabParallelEmbedding [V, D]                 rows    r*V/R ...      all-reduce (others give 0)
    ParallelLMHead         [V, D]                 rows    r*V/R ...      the sampler compares ranks
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.kernels.kernels import Kernels, LinearWeight
from cluster.model.tp_group import TPGroup


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a layer's tensors live, among whom they are split, and who computes with them."""

    group: TPGroup
    device: torch.device
    dtype: torch.dtype
    kernels: Kernels
    deterministic: bool = False
    """Sum over inputs in slices that do not depend on the number of ranks."""

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self.device, dtype=self.dtype)

    def split(self, what: str, size: int) -> int:
        """This rank's share of a dimension.

        Raises:
            ValueError: the group's size does not divide it.
        """
        if size % self.group.size:
            raise ValueError(f"{what} of {size} cannot be split over {self.group.size} ranks")
        return size // self.group.size


class Sink(Protocol):
    """Where a slice of the checkpoint goes; rows may come in pieces, in order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the slice."""

    def write(self, row: int, rows: Tensor) -> None:
        """Rows `row ...` of the slice."""


@dataclasses.dataclass(frozen=True)
class TensorSink:
    """A slice that is kept as it is."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def write(self, row: int, rows: Tensor) -> None:
        self.tensor[row : row + rows.shape[0]].copy_(rows)


@dataclasses.dataclass(frozen=True)
class WeightSink:
    """A slice that becomes rows `first ...` of one matrix, or its columns cut over several."""

    weights: tuple[LinearWeight, ...]
    first: int
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows, sum(weight.shape[1] for weight in self.weights)

    def write(self, row: int, rows: Tensor) -> None:
        column = 0
        for weight in self.weights:
            columns = slice(column, column + weight.shape[1])
            weight.write(self.first + row, rows[:, columns])
            column = columns.stop


class TensorShard(NamedTuple):
    """One slice to read: `sink` gets rows (or columns) `start ...` of the named tensor."""

    name: str
    full_shape: tuple[int, ...]
    dim: int
    start: int
    sink: Sink


class ColumnParallelLinear:
    """Several linear layers over one input, merged into one matrix and split by output.

    weight = [part 0 of this rank | part 1 of this rank | ...], so that every rank's slice is itself
    a merged layer: q, k, v of its own heads, or gate and up of its own columns.
    """

    def __init__(
        self, in_features: int, parts: Mapping[str, int], bias: bool, where: Placement
    ) -> None:
        """`parts`: checkpoint name of each part and its full number of outputs."""
        self.parts = dict(parts)
        self.where = where
        self.local = {name: where.split(name, size) for name, size in parts.items()}
        self.weight = where.kernels.linear_weight(sum(self.local.values()), in_features, bias)

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight(x)

    def shards(self, prefix: str) -> Iterator[TensorShard]:
        """`prefix`: what stands before the parts' names in the checkpoint."""
        row = 0
        for name, full in self.parts.items():
            local = self.local[name]
            start = self.where.group.rank * local
            shape = (full, self.weight.shape[1])
            sink = WeightSink((self.weight,), row, local)
            yield TensorShard(f"{prefix}.{name}.weight", shape, 0, start, sink)
            if self.weight.bias is not None:
                bias = TensorSink(self.weight.bias[row : row + local])
                yield TensorShard(f"{prefix}.{name}.bias", (full,), 0, start, bias)
            row += local


class RowParallelLinear:
    """A linear layer whose input is already split over the ranks; no bias; sums over the ranks.

    In deterministic mode the inputs are cut into the same slices whatever the number of ranks, and
    the slices' float32 sums are added as a tree of which every rank holds a branch:

        slices   0   1   2   3   4   5   6   7
                  \\ /     \\ /     \\ /     \\ /
                    +--+--+       +--+--+          rank 0 | rank 1 of 2
                       +------+------+             the all-reduce
    """

    def __init__(self, in_features: int, out_features: int, where: Placement) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self.where = where
        local = where.split("input", in_features)
        slices = _slices(in_features) // where.group.size if where.deterministic else 1
        slices = max(slices, 1)
        self.weights = tuple(
            where.kernels.linear_weight(out_features, local // slices) for _ in range(slices)
        )

    def __call__(self, x: Tensor) -> Tensor:
        all_reduce = self.where.group.all_reduce
        if not self.where.deterministic:
            return all_reduce(self.weights[0](x))
        width = self.weights[0].shape[1]
        sums = [
            weight(x[:, number * width : (number + 1) * width], full_precision=True)
            for number, weight in enumerate(self.weights)
        ]
        while len(sums) > 1:
            sums = [sums[i] + sums[i + 1] for i in range(0, len(sums), 2)]
        return all_reduce(sums[0]).to(x.dtype)

    def shards(self, name: str) -> Iterator[TensorShard]:
        sink = WeightSink(self.weights, 0, self.out_features)
        start = self.where.group.rank * sink.shape[1]
        shape = (self.out_features, self.in_features)
        yield TensorShard(f"{name}.weight", shape, 1, start, sink)


def _slices(size: int) -> int:
    """The largest power of two, at most 8, that divides a dimension."""
    return next(slices for slices in (8, 4, 2, 1) if size % slices == 0)


class VocabParallelEmbedding:
    """Token embeddings, split by vocabulary."""

    def __init__(
        self, vocab_size: int, hidden_size: int, where: Placement, tied: LinearWeight | None = None
    ) -> None:
        """`tied`: the head's matrix where the model shares it; it is then filled by the head."""
        self.vocab_size = vocab_size
        self.where = where
        self.tied = tied
        rows = where.split("vocabulary", vocab_size)
        self.rows = rows
        self.weight = None if tied is not None else where.empty(rows, hidden_size)

    def __call__(self, token_ids: Tensor) -> Tensor:
        """[T] ids -> [T, D], the same on every rank."""
        if self.where.group.size == 1:
            return self._look_up(token_ids)
        local = token_ids - self.where.group.rank * self.rows
        elsewhere = (local < 0) | (local >= self.rows)
        embedded = self._look_up(local.masked_fill(elsewhere, 0))
        return self.where.group.all_reduce(embedded.masked_fill_(elsewhere.unsqueeze(-1), 0))

    def _look_up(self, rows: Tensor) -> Tensor:
        if self.tied is not None:
            return self.tied.embedding(rows)
        assert self.weight is not None
        return F.embedding(rows, self.weight)

    def shards(self, name: str) -> Iterator[TensorShard]:
        if self.weight is not None:
            sink = TensorSink(self.weight)
            start = self.where.group.rank * self.rows
            shape = (self.vocab_size, sink.shape[1])
            yield TensorShard(f"{name}.weight", shape, 0, start, sink)


class ParallelLMHead:
    """Hidden states to the logits of this rank's vocabulary; never gathered here."""

    def __init__(self, vocab_size: int, hidden_size: int, where: Placement) -> None:
        self.vocab_size = vocab_size
        self.where = where
        rows = where.split("vocabulary", vocab_size)
        self.weight = where.kernels.head_weight(rows, hidden_size)

    def __call__(self, x: Tensor) -> Tensor:
        """[S, D] -> [S, V / R]."""
        return self.weight(x)

    def shards(self, name: str) -> Iterator[TensorShard]:
        """`name`: of the tensor that fills it, the embedding's where the model shares it."""
        rows, hidden = self.weight.shape
        start = self.where.group.rank * rows
        shape = (self.vocab_size, hidden)
        yield TensorShard(f"{name}.weight", shape, 0, start, WeightSink((self.weight,), 0, rows))
