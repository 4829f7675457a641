"""Tensor parallelism: the group of ranks and the layers that are split over it.

Owns which slice of which checkpoint tensor a rank holds. Refuses process globals: the group is a
constructor argument, and no layer asks who it is. Knows no files and no attention.

    layer                  checkpoint [out, in]   rank r of R holds      afterwards
    ColumnParallelLinear   [O, I] per part        rows    r*O/R ...      nothing: outputs stay local
    RowParallelLinear      [O, I]                 columns r*I/R ...      all-reduce (sum)
    VocabParallelEmbedding [V, D]                 rows    r*V/R ...      all-reduce (others give 0)
    ParallelLMHead         [V, D]                 rows    r*V/R ...      the sampler compares ranks
"""

import dataclasses
import datetime
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class TPGroup:
    """The ranks that hold one model together. Size 1 needs no torch.distributed."""

    def __init__(self, rank: int = 0, size: int = 1, process_group: Any = None) -> None:
        """`process_group`: a torch ProcessGroup or Backend of exactly these ranks."""
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} is outside a group of {size}")
        if size > 1 and process_group is None:
            raise ValueError(f"a group of {size} ranks needs a process group")
        self.rank = rank
        self.size = size
        self._process_group = process_group

    @classmethod
    def join(
        cls,
        rank: int,
        size: int,
        rendezvous: str,
        backend: Literal["gloo", "nccl"],
        timeout_s: float = 60.0,
    ) -> "TPGroup":
        """Meet the other ranks; every rank calls this with the same rendezvous.

        Args:
            rendezvous: `file:///path` (one node; a path nobody used before; gloo then listens on
                loopback only) or `tcp://host:port` (rank 0 listens there).
            timeout_s: for the meeting and for every collective after it.

        Raises:
            ValueError: the rendezvous has another scheme.
            RuntimeError: the ranks did not meet in time (torch's own DistError).
        """
        if size == 1:
            return cls()
        timeout = datetime.timedelta(seconds=timeout_s)
        store = _store(rank, size, rendezvous, timeout)
        if backend == "nccl":
            nccl: Any = dist.ProcessGroupNCCL
            options = nccl.Options()
            options._timeout = timeout
            return cls(rank, size, nccl(store, rank, size, options))
        gloo: Any = dist.ProcessGroupGloo
        gloo_options = gloo._Options()
        gloo_options._timeout = timeout
        local = rendezvous.startswith("file:")
        gloo_options._devices = [
            gloo.create_device(hostname="127.0.0.1") if local else gloo.create_default_device()
        ]
        return cls(rank, size, gloo(store, rank, size, gloo_options))

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum of every rank's `x`, in place; also returned."""
        if self.size > 1:
            self._process_group.allreduce([x]).wait()
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's `x` side by side along the last dimension, rank 0 first."""
        if self.size == 1:
            return x
        gathered = torch.empty(self.size * x.numel(), dtype=x.dtype, device=x.device)
        self._process_group._allgather_base(gathered, x.reshape(-1)).wait()
        if x.dim() == 1:
            return gathered
        return torch.cat(gathered.view(self.size, *x.shape).unbind(0), dim=-1)

    def close(self) -> None:
        """Leave the group; collectives fail afterwards."""
        if self._process_group is not None:
            self._process_group.shutdown()


def _store(rank: int, size: int, rendezvous: str, timeout: datetime.timedelta) -> Any:
    """The key-value store through which ranks exchange their addresses."""
    stores: Any = dist
    url = urlsplit(rendezvous)
    if url.scheme == "file":
        store: Any = stores.FileStore(url.path, size)
    elif url.scheme == "tcp" and url.hostname and url.port:
        store = stores.TCPStore(url.hostname, url.port, size, rank == 0, timeout)
    else:
        raise ValueError(f"rendezvous {rendezvous!r} is neither file:///path nor tcp://host:port")
    store.set_timeout(timeout)
    return store


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a layer's tensors live, and among whom they are split."""

    group: TPGroup
    device: torch.device
    dtype: torch.dtype

    def empty(self, *shape: int) -> nn.Parameter:
        tensor = torch.empty(shape, device=self.device, dtype=self.dtype)
        return nn.Parameter(tensor, requires_grad=False)

    def split(self, what: str, size: int) -> int:
        """This rank's share of a dimension.

        Raises:
            ValueError: the group's size does not divide it.
        """
        if size % self.group.size:
            raise ValueError(f"{what} of {size} cannot be split over {self.group.size} ranks")
        return size // self.group.size


class TensorShard(NamedTuple):
    """One slice to read: `target` gets rows (or columns) `start ...` of the named tensor."""

    name: str
    full_shape: tuple[int, ...]
    dim: int
    start: int
    target: Tensor


class ColumnParallelLinear(nn.Module):
    """Several linear layers over one input, merged into one matrix and split by output.

    weight = [part 0 of this rank | part 1 of this rank | ...], so that every rank's slice is itself
    a merged layer: q, k, v of its own heads, or gate and up of its own columns.
    """

    def __init__(
        self, in_features: int, parts: Mapping[str, int], bias: bool, where: Placement
    ) -> None:
        """`parts`: checkpoint name of each part and its full number of outputs."""
        super().__init__()
        self.parts = dict(parts)
        self.where = where
        self.local = {name: where.split(name, size) for name, size in parts.items()}
        self.weight = where.empty(sum(self.local.values()), in_features)
        self.bias = where.empty(sum(self.local.values())) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def shards(self, prefix: str) -> Iterator[TensorShard]:
        """`prefix`: what stands before the parts' names in the checkpoint."""
        row = 0
        for name, full in self.parts.items():
            local = self.local[name]
            rows, start = slice(row, row + local), self.where.group.rank * local
            shape = (full, self.weight.shape[1])
            yield TensorShard(f"{prefix}.{name}.weight", shape, 0, start, self.weight[rows])
            if self.bias is not None:
                yield TensorShard(f"{prefix}.{name}.bias", (full,), 0, start, self.bias[rows])
            row += local


class RowParallelLinear(nn.Module):
    """A linear layer whose input is already split over the ranks; no bias; sums over the ranks."""

    def __init__(self, in_features: int, out_features: int, where: Placement) -> None:
        super().__init__()
        self.in_features = in_features
        self.where = where
        self.weight = where.empty(out_features, where.split("input", in_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.where.group.all_reduce(F.linear(x, self.weight))

    def shards(self, name: str) -> Iterator[TensorShard]:
        out_features, local = self.weight.shape
        start = self.where.group.rank * local
        yield TensorShard(
            f"{name}.weight", (out_features, self.in_features), 1, start, self.weight.data
        )


class VocabParallelEmbedding(nn.Module):
    """Token embeddings, split by vocabulary."""

    def __init__(self, vocab_size: int, hidden_size: int, where: Placement) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.where = where
        self.weight = where.empty(where.split("vocabulary", vocab_size), hidden_size)

    def forward(self, token_ids: Tensor) -> Tensor:
        """[T] ids -> [T, D], the same on every rank."""
        if self.where.group.size == 1:
            return F.embedding(token_ids, self.weight)
        rows = self.weight.shape[0]
        local = token_ids - self.where.group.rank * rows
        elsewhere = (local < 0) | (local >= rows)
        embedded = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return self.where.group.all_reduce(embedded.masked_fill_(elsewhere.unsqueeze(-1), 0))

    def shards(self, name: str) -> Iterator[TensorShard]:
        rows, hidden = self.weight.shape
        start = self.where.group.rank * rows
        yield TensorShard(f"{name}.weight", (self.vocab_size, hidden), 0, start, self.weight.data)


class ParallelLMHead(nn.Module):
    """Hidden states to the logits of this rank's vocabulary; never gathered here."""

    def __init__(
        self, vocab_size: int, hidden_size: int, where: Placement, tied: nn.Parameter | None
    ) -> None:
        """`tied`: the embedding's weight where the model shares it."""
        super().__init__()
        self.vocab_size = vocab_size
        self.where = where
        rows = where.split("vocabulary", vocab_size)
        self.tied = tied is not None
        self.weight = where.empty(rows, hidden_size) if tied is None else tied

    def forward(self, x: Tensor) -> Tensor:
        """[S, D] -> [S, V / R]."""
        return F.linear(x, self.weight)

    def shards(self, name: str) -> Iterator[TensorShard]:
        if not self.tied:
            rows, hidden = self.weight.shape
            start = self.where.group.rank * rows
            shape = (self.vocab_size, hidden)
            yield TensorShard(f"{name}.weight", shape, 0, start, self.weight.data)
