"""TPGroup: the ranks that hold one model together, and how they add up.

Owns the meeting of the ranks and their collectives. Knows no layers and no checkpoint.
"""

import datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor


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
