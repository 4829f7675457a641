"""SymmetricMemory: one buffer a rank that all GPUs of a host can reach, and the sums over it.

Owns the door to `torch.distributed._symmetric_memory`: the meeting, and the names of its
operations, which are looked up before anything is allocated. Works with CUDA alone. Decides
nothing: see `all_reduce_choice`.

    rank 0  [ buffer 0 ]  <-.        every rank maps all buffers; operations read
    rank 1  [ buffer 1 ]  <-+-- x    and write them and wait for each other on the GPU
    rank 2  [ buffer 2 ]  <-'

The operations wait in the order in which they are issued: all of a rank's must be on one stream,
or ranks wait for ever (pytorch/pytorch#189228). None blocks the host, so all can be captured.
"""

import importlib
import secrets
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.model.all_reduce_choice import TABLE

OPERATIONS = (
    "one_shot_all_reduce_copy_out",
    "two_shot_all_reduce_out",
    "multimem_all_reduce_",
)
"""Of `torch.ops.symm_mem`, the same in torch 2.11 to 2.13."""


class SymmetricMemory(Protocol):
    """What `SymmetricCollectives` needs of the ranks' buffers. `x` is contiguous, aligned, fits."""

    multicast: bool
    """Whether the switch can add."""

    def one_shot(self, x: Tensor) -> None:
        """`x` becomes the sum; the addition is in the ranks' order."""

    def two_shot(self, x: Tensor) -> None:
        """`x` becomes the sum; every share is added in the ranks' order."""

    def multimem(self, x: Tensor) -> None:
        """`x` becomes the sum; the switch's order is its own."""

    def put(self, x: Tensor) -> None:
        """Lay `x` into this rank's buffer."""

    def peer(self, rank: int, like: Tensor) -> Tensor:
        """What lies in a rank's buffer, of the size and dtype of `like`."""

    def barrier(self) -> None:
        """On the GPU: what was put before is seen by all, what was read before may be replaced."""


def hindrance(size: int, operations: Any = torch.ops.symm_mem) -> str:
    """Why a group of this size cannot have it on any machine; empty if it can."""
    if size not in TABLE:
        return f"torch has no kernels for {size} ranks"
    missing = [name for name in OPERATIONS if not hasattr(operations, name)]
    return f"torch {torch.__version__} lacks symm_mem::{missing[0]}" if missing else ""


class TorchSymmetricMemory:
    """The buffers as torch maps them."""

    def __init__(self, buffer: Tensor, handle: Any, group: Any, operations: Any) -> None:
        """`buffer`: bytes on this rank's GPU; `handle`: from its rendezvous in `group`, which torch
        itself does not keep."""
        self.multicast = bool(handle.multicast_ptr)
        self._buffer = buffer
        self._handle = handle
        self._group = group
        self._name: str = group.group_name
        self._operations = operations

    @classmethod
    def meet(
        cls, backend: Any, store: Any, rank: int, size: int, device: torch.device, num_bytes: int
    ) -> "TorchSymmetricMemory":
        """Map the buffers of all ranks; collective.

        Args:
            backend: the NCCL backend of exactly these ranks; its group gets a name here, for torch
                finds groups by name alone.

        Raises:
            RuntimeError: a GPU cannot reach another, or a rank did not come in time.
        """
        symmetric: Any = importlib.import_module("torch.distributed._symmetric_memory")
        if rank == 0:
            store.set("name", f"deeprequest-{secrets.token_hex(8)}")
        name = store.get("name").decode()
        group = named_group(name, backend, store, rank, size, device)
        if not hasattr(symmetric.enable_symm_mem_for_group, "__deprecated__"):
            symmetric._SymmetricMemory.set_group_info(name, rank, size, store)
        buffer = symmetric.empty(num_bytes, dtype=torch.uint8, device=device)
        handle = symmetric.rendezvous(buffer, name)
        if handle is None:
            raise RuntimeError("torch made no symmetric memory of the buffer")
        return cls(buffer, handle, group, torch.ops.symm_mem)

    def one_shot(self, x: Tensor) -> None:
        flat = x.view(-1)
        self._operations.one_shot_all_reduce_copy_out(
            self._part(flat), flat, "sum", self._name, flat
        )

    def two_shot(self, x: Tensor) -> None:
        flat = x.view(-1)
        self._operations.two_shot_all_reduce_out(self._filled(flat), "sum", self._name, flat)

    def multimem(self, x: Tensor) -> None:
        flat = x.view(-1)
        part = self._filled(flat)
        self._operations.multimem_all_reduce_(part, "sum", self._name)
        flat.copy_(part)

    def put(self, x: Tensor) -> None:
        self._filled(x.view(-1))

    def peer(self, rank: int, like: Tensor) -> Tensor:
        part: Tensor = self._handle.get_buffer(rank, (like.numel(),), like.dtype)
        return part

    def barrier(self) -> None:
        self._handle.barrier()

    def _part(self, flat: Tensor) -> Tensor:
        """The beginning of the buffer, as large as `flat`."""
        return self._buffer[: flat.nbytes].view(flat.dtype)

    def _filled(self, flat: Tensor) -> Tensor:
        return self._part(flat).copy_(flat)


def named_group(
    name: str, backend: Any, store: Any, rank: int, size: int, device: torch.device
) -> Any:
    """A process group that torch finds by name while it lives. The backend keeps the name."""
    groups: Any = dist
    group = groups.ProcessGroup(store, rank, size)
    group._register_backend(device, groups.ProcessGroup.BackendType.NCCL, backend)
    group._set_group_name(name)
    register: Any = torch._C._distributed_c10d._register_process_group
    register(name, group)
    return group
