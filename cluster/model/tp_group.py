"""TPGroup: the ranks that hold one model together.

Owns the meeting of the ranks and the shapes of what they exchange; how they exchange it is the
business of `Collectives`. Knows no layers and no checkpoint.
"""

import datetime
import logging
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.model.all_reduce_choice import BUFFER_BYTES
from cluster.model.collectives import Collectives, TorchCollectives
from cluster.model.shm_collectives import ShmCollectives, ShmUnavailableError
from cluster.model.symmetric_collectives import (
    SymmetricCollectives,
    SymmetricUnavailableError,
    meet,
)
from cluster.model.symmetric_memory import TorchSymmetricMemory, hindrance

Backend = Literal["auto", "shm", "gloo", "nccl", "symmetric"]
"""Between CPUs, `auto`: shared memory where all ranks are on one host and it can be had, else gloo.
Between GPUs, `symmetric`: symmetric memory beside nccl, under the same conditions, else nccl."""

_log = logging.getLogger(__name__)


class TPGroup:
    """A rank's membership. A group of one needs no collectives."""

    def __init__(
        self, rank: int = 0, size: int = 1, collectives: Collectives | None = None
    ) -> None:
        """`collectives`: of exactly these ranks."""
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} is outside a group of {size}")
        if size > 1 and collectives is None:
            raise ValueError(f"a group of {size} ranks needs collectives")
        self.rank = rank
        self.size = size
        self._collectives = collectives

    @classmethod
    def join(
        cls,
        rank: int,
        size: int,
        rendezvous: str,
        backend: Backend,
        timeout_s: float = 60.0,
        ordered: bool = False,
        device: torch.device | None = None,
    ) -> "TPGroup":
        """Meet the other ranks; every rank calls this with the same rendezvous and backend.

        Args:
            rendezvous: `file:///path` (one node; a path nobody used before; gloo then listens on
                loopback only) or `tcp://host:port` (rank 0 listens there).
            timeout_s: for the meeting and for every collective after it.
            ordered: sums have the same bits whatever connects the ranks, and however many they are
                if each brings a branch of one tree.
            device: this rank's GPU, for `symmetric`.

        Raises:
            ValueError: the rendezvous has another scheme.
            RuntimeError: the ranks did not meet in time (torch's own DistError), or `shm` was
                asked for and cannot be had.
        """
        if size == 1:
            return cls()
        timeout = datetime.timedelta(seconds=timeout_s)
        store = _store(rank, size, rendezvous, timeout)
        one_host = rendezvous.startswith("file:")
        if backend == "shm" or (backend == "auto" and one_host):
            try:
                return cls(rank, size, ShmCollectives.meet(store, rank, size, timeout_s))
            except ShmUnavailableError as error:
                if backend == "shm":
                    raise
                _log.warning("collectives: gloo, shared memory is not available (%s)", error)
        by_torch: Literal["gloo", "nccl"] = "nccl" if backend in ("nccl", "symmetric") else "gloo"
        by_library = TorchCollectives.meet(store, rank, size, by_torch, timeout, one_host, ordered)
        met: Collectives = by_library
        if backend == "symmetric" and one_host and device is not None:
            met = _beside(by_library, store, rank, size, device, ordered)
        if device is not None:
            _call_once(by_library, size, device)
        return cls(rank, size, met)

    @property
    def collectives(self) -> str:
        """For people: `shm`, `gloo`, `nccl`, `symmetric memory`, each perhaps `in order`, or `none`
        for a group of one."""
        return "none" if self._collectives is None else self._collectives.name

    @property
    def capture_ok(self) -> bool:
        """Whether what the ranks exchange may be recorded in a CUDA graph."""
        return self._collectives is None or self._collectives.capture_ok

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum of every rank's `x`, in place; also returned. float32 or bfloat16."""
        if self._collectives is None:
            return x
        if x.is_contiguous():
            self._collectives.all_reduce(x)
            return x
        dense = x.contiguous()
        self._collectives.all_reduce(dense)
        return x.copy_(dense)

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's `x` side by side along the last dimension, rank 0 first."""
        if self._collectives is None:
            return x
        gathered = torch.empty(self.size * x.numel(), dtype=x.dtype, device=x.device)
        self._collectives.all_gather(x.contiguous(), gathered)
        if x.dim() == 1:
            return gathered
        return torch.cat(gathered.view(self.size, *x.shape).unbind(0), dim=-1)

    def limit(self, timeout_s: float) -> None:
        """From now on a collective fails after so long: steps are quick, unlike loading, for which
        ranks may take different times."""
        if self._collectives is not None:
            self._collectives.limit(timeout_s)

    def close(self) -> None:
        """Leave the group; collectives fail afterwards."""
        if self._collectives is not None:
            self._collectives.close()


def _call_once(library: Collectives, size: int, device: torch.device) -> None:
    """A library connects, and takes its memory, in its first calls: before it is measured what is
    left, and not while a step is timed."""
    numbers = torch.ones(64, device=device)
    library.all_gather(numbers, torch.empty(size * len(numbers), device=device))
    library.all_reduce(numbers)


def _beside(
    library: TorchCollectives,
    store: Any,
    rank: int,
    size: int,
    device: torch.device,
    ordered: bool,
) -> Collectives:
    """Symmetric memory beside nccl where all ranks can have it, else nccl alone."""
    stores: Any = dist
    shared = stores.PrefixStore("symmetric", store)
    make = partial(
        TorchSymmetricMemory.meet, library.backend, shared, rank, size, device, BUFFER_BYTES
    )
    try:
        memory = meet(shared, rank, size, make, hindrance(size))
    except SymmetricUnavailableError as error:
        _log.warning("collectives: nccl, symmetric memory is not available (%s)", error)
        return library
    return SymmetricCollectives(memory, library, size, ordered)


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
