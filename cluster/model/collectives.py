"""Collectives: how ranks add up, by whatever connects them.

Owns the interface, and its implementation by torch's process groups (gloo between nodes, nccl
between GPUs). Shared memory is in `shm_collectives`. Knows no layers.

gloo and nccl add in orders of their own, which depend on sizes. Where bits matter they only gather,
and every rank adds by itself, in the order of shared memory, in float32:

    ranks   0   1   2   3   4
             \\ /     \\ /     |
              +--+--+       |
                 +----+-----+
"""

import datetime
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

PIECE = 1 << 20
"""Elements that are gathered at a time."""


class Collectives(Protocol):
    """What a group of ranks does together; every rank makes the same calls in the same order."""

    name: str

    @property
    def capture_ok(self) -> bool:
        """Whether calls may be recorded in a CUDA graph: nothing waits on the host."""

    def all_reduce(self, x: Tensor) -> None:
        """`x` (contiguous) becomes the sum of every rank's `x`.

        Raises:
            RuntimeError: a rank is gone, or did not come in time.
        """

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        """Flat `out` becomes every rank's elements of `x` (contiguous), rank 0's first.

        Raises:
            RuntimeError: a rank is gone, or did not come in time.
        """

    def limit(self, timeout_s: float) -> None:
        """From now on a collective fails after so long, at the latest."""

    def close(self) -> None:
        """Leave; collectives fail afterwards."""


class TorchCollectives:
    """A torch process group that is nobody's global."""

    def __init__(self, name: str, process_group: Any, ordered: bool = False) -> None:
        """`process_group`: a torch ProcessGroup or Backend of exactly these ranks.

        `ordered`: sums have the bits of shared memory's.
        """
        self.name = f"{name} in order" if ordered else name
        self._process_group = process_group
        self._ordered = ordered

    @classmethod
    def meet(
        cls,
        store: Any,
        rank: int,
        size: int,
        backend: Literal["gloo", "nccl"],
        timeout: datetime.timedelta,
        one_host: bool,
        ordered: bool = False,
    ) -> "TorchCollectives":
        """Meet over a torch store; gloo listens on loopback only if all ranks share a host.

        Raises:
            RuntimeError: the ranks did not meet in time (torch's own DistError).
        """
        if backend == "nccl":
            nccl: Any = dist.ProcessGroupNCCL
            options = nccl.Options()
            options._timeout = timeout
            return cls("nccl", nccl(store, rank, size, options), ordered)
        gloo: Any = dist.ProcessGroupGloo
        gloo_options = gloo._Options()
        gloo_options._timeout = timeout
        loopback = gloo.create_device(hostname="127.0.0.1") if one_host else None
        gloo_options._devices = [loopback or gloo.create_default_device()]
        return cls("gloo", gloo(store, rank, size, gloo_options), ordered)

    @property
    def capture_ok(self) -> bool:
        return self.name.startswith("nccl")

    @property
    def backend(self) -> Any:
        """What torch calls the group or backend."""
        return self._process_group

    def all_reduce(self, x: Tensor) -> None:
        if not self._ordered:
            self._process_group.allreduce([x]).wait()
            return
        size = self._process_group.size()
        flat = x.view(-1)
        for start in range(0, len(flat), PIECE):
            piece = flat[start : start + PIECE]
            gathered = torch.empty(size * piece.numel(), dtype=x.dtype, device=x.device)
            self.all_gather(piece, gathered)
            piece.copy_(tree_sum(list(gathered.view(size, -1).float())))

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        self._process_group._allgather_base(out, x.view(-1)).wait()

    def limit(self, timeout_s: float) -> None:
        group = self._process_group
        name = "set_timeout" if hasattr(group, "set_timeout") else "_set_default_timeout"
        getattr(group, name)(datetime.timedelta(seconds=timeout_s))

    def close(self) -> None:
        self._process_group.shutdown()


def tree_sum(parts: list[Tensor]) -> Tensor:
    """Neighbours are added, then their sums, until one is left."""
    while len(parts) > 1:
        pairs = [first + second for first, second in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[2 * len(pairs) :]
    return parts[0]
