"""SymmetricCollectives: GPUs of one host add up in memory that all of them can reach.

Owns the agreement of all ranks on using it, which sum takes which way, and the order of a buffer's
uses. How the memory is reached is the business of `symmetric_memory`, the thresholds are those of
`all_reduce_choice`; what neither serves goes to the library that was given.

Every rank calls with the same sizes and dtypes in the same order, so every rank takes the same way.
Nothing is allocated and nothing waited for on the host, save in ordered mode: that adds in float32,
in shared memory's order, and allocates its parts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cluster.model.all_reduce_choice import ALIGNMENT, BUFFER_BYTES, Algorithm, choose
from cluster.model.collectives import Collectives, tree_sum
from cluster.model.symmetric_memory import SymmetricMemory

DTYPES = (torch.bfloat16, torch.float32)


class SymmetricUnavailableError(RuntimeError):
    """Symmetric memory cannot serve this group; the message says on which rank and why."""


def agree(store: Any, rank: int, size: int, obstacle: str) -> None:
    """Every rank says what hinders it, or nothing; collective.

    Raises:
        SymmetricUnavailableError: on every rank, if any is hindered.
        RuntimeError: a rank did not come in time.
    """
    store.set(f"obstacle/{rank}", obstacle)
    for peer in range(size):
        told = store.get(f"obstacle/{peer}").decode()
        if told:
            raise SymmetricUnavailableError(f"rank {peer}: {told}")


def meet(
    store: Any, rank: int, size: int, make: Callable[[], SymmetricMemory], obstacle: str
) -> SymmetricMemory:
    """The ranks' memory; either all succeed or none does.

    Args:
        store: of torch, used for nothing else.
        make: collective; may raise RuntimeError.
        obstacle: what hinders this rank from the start, or nothing.

    Raises:
        SymmetricUnavailableError: on every rank, if any is hindered before or fails while mapping.
    """
    torch_stores: Any = torch.distributed
    agree(torch_stores.PrefixStore("before", store), rank, size, obstacle)
    memory, failure = None, ""
    try:
        memory = make()
    except RuntimeError as error:
        failure = str(error).splitlines()[0]
    agree(torch_stores.PrefixStore("after", store), rank, size, failure)
    assert memory is not None
    return memory


class SymmetricCollectives:
    """Sums by the way that fits their size."""

    def __init__(
        self,
        memory: SymmetricMemory,
        library: Collectives,
        size: int,
        ordered: bool = False,
    ) -> None:
        """`library`: of the same ranks, for what is too large or not aligned, and for gathering.

        `ordered`: sums have the bits of shared memory's; the library must then be ordered too.
        """
        switch = ", multicast" if memory.multicast else ""
        self.name = f"symmetric memory{switch}" + (" in order" if ordered else "")
        self.capture_ok = library.capture_ok
        self._memory = memory
        self._library = library
        self._size = size
        self._ordered = ordered
        self._sums: dict[Algorithm, Callable[[Tensor], None]] = {
            "one_shot": memory.one_shot,
            "two_shot": memory.two_shot,
            "multimem": memory.multimem,
            "ordered": self._sum_in_order,
            "library": library.all_reduce,
        }

    def algorithm(self, x: Tensor) -> Algorithm:
        """Who sums such a tensor."""
        offset = x.storage_offset() * x.element_size()
        if x.dtype not in DTYPES or offset % ALIGNMENT or not x.numel():
            return "library"
        return choose(self._size, x.nbytes, self._memory.multicast, self._ordered)

    def all_reduce(self, x: Tensor) -> None:
        self._sums[self.algorithm(x)](x)

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        self._library.all_gather(x, out)

    def limit(self, timeout_s: float) -> None:
        """The library's; a GPU that waits for another is ended with its process."""
        self._library.limit(timeout_s)

    def close(self) -> None:
        self._library.close()

    def _sum_in_order(self, x: Tensor) -> None:
        """Piece by piece: put, wait, add what all have put, wait."""
        flat, count = x.view(-1), BUFFER_BYTES // x.element_size()
        for start in range(0, len(flat), count):
            piece = flat[start : start + count]
            self._memory.put(piece)
            self._memory.barrier()
            parts = [self._memory.peer(rank, piece).float() for rank in range(self._size)]
            piece.copy_(tree_sum(parts))
            self._memory.barrier()
