"""Collectives: how ranks add up, by whatever connects them.

Owns the interface, and its implementation by torch's process groups (gloo between nodes, nccl
between GPUs). Shared memory is in `shm_collectives`. Knows no layers.
"""

import datetime
from typing import Any, Literal, Protocol

import torch.distributed as dist
from torch import Tensor


class Collectives(Protocol):
    """What a group of ranks does together; every rank makes the same calls in the same order."""

    name: str

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

    def close(self) -> None:
        """Leave; collectives fail afterwards."""


class TorchCollectives:
    """A torch process group that is nobody's global."""

    def __init__(self, name: str, process_group: Any) -> None:
        """`process_group`: a torch ProcessGroup or Backend of exactly these ranks."""
        self.name = name
        self._process_group = process_group

    @classmethod
    def meet(
        cls,
        store: Any,
        rank: int,
        size: int,
        backend: Literal["gloo", "nccl"],
        timeout: datetime.timedelta,
        one_host: bool,
    ) -> "TorchCollectives":
        """Meet over a torch store; gloo listens on loopback only if all ranks share a host.

        Raises:
            RuntimeError: the ranks did not meet in time (torch's own DistError).
        """
        if backend == "nccl":
            nccl: Any = dist.ProcessGroupNCCL
            options = nccl.Options()
            options._timeout = timeout
            return cls("nccl", nccl(store, rank, size, options))
        gloo: Any = dist.ProcessGroupGloo
        gloo_options = gloo._Options()
        gloo_options._timeout = timeout
        loopback = gloo.create_device(hostname="127.0.0.1") if one_host else None
        gloo_options._devices = [loopback or gloo.create_default_device()]
        return cls("gloo", gloo(store, rank, size, gloo_options))

    def all_reduce(self, x: Tensor) -> None:
        self._process_group.allreduce([x]).wait()

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        self._process_group._allgather_base(out, x.view(-1)).wait()

    def close(self) -> None:
        self._process_group.shutdown()
