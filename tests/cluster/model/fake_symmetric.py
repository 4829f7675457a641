"""torch's symmetric memory for ranks that are threads: the same calls, on CPU tensors.

Every call is held against the schema of the operation in the installed torch. What an operation has
used is spoiled behind it, so that a stale read is not a number.
"""

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

SPOILED = 0xFF
"""Bytes of it are NaN in bfloat16 and in float32."""


class Host:
    """What the ranks of one host share."""

    def __init__(self, size: int, num_bytes: int, multicast: bool) -> None:
        self.size = size
        self.multicast = multicast
        self.buffers = [torch.full((num_bytes,), SPOILED, dtype=torch.uint8) for _ in range(size)]
        self.meeting = threading.Barrier(size)

    def wait(self) -> None:
        self.meeting.wait(30)


class Group(NamedTuple):
    group_name: str = "fake"


class Handle:
    """What torch's rendezvous gives."""

    def __init__(self, host: Host, rank: int) -> None:
        self.multicast_ptr = 4096 if host.multicast else 0
        self._host = host
        self._rank = rank
        self._barriers = 0

    def get_buffer(self, rank: int, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        (count,) = sizes
        return self._host.buffers[rank][: count * dtype.itemsize].view(dtype)

    def barrier(self) -> None:
        self._host.wait()
        self._barriers += 1
        if self._barriers % 2 == 0:  # all have read
            self._host.buffers[self._rank].fill_(SPOILED)


class Operations:
    """`torch.ops.symm_mem`, as one rank calls it."""

    def __init__(self, host: Host, rank: int) -> None:
        self.called: list[str] = []
        self._host = host
        self._rank = rank

    def one_shot_all_reduce_copy_out(self, symm: Tensor, x: Tensor, *rest: Any) -> None:
        out: Tensor = self._check("one_shot_all_reduce_copy_out", symm, x, *rest)
        symm.copy_(x)
        out.copy_(self._sum(symm))

    def two_shot_all_reduce_out(self, symm: Tensor, *rest: Any) -> None:
        out: Tensor = self._check("two_shot_all_reduce_out", symm, *rest)
        out.copy_(self._sum(symm))

    def multimem_all_reduce_(self, symm: Tensor, *rest: Any) -> None:
        self._check("multimem_all_reduce_", symm, *rest)
        assert self._host.multicast
        symm.copy_(self._sum(symm))

    def _check(self, name: str, *arguments: Any) -> Any:
        """The call fits torch's schema and names its group; the last argument comes back."""
        schema = getattr(torch.ops.symm_mem, name).default._schema.arguments
        kinds = {"Tensor": Tensor, "str": str}
        assert len(arguments) == len(schema)
        for argument, given in zip(schema, arguments, strict=True):
            assert isinstance(given, kinds[argument.type.str()]), (name, argument.name)
            wanted = {"reduce_op": "sum", "group_name": "fake"}.get(argument.name)
            assert wanted in (None, given)
        assert arguments[0].data_ptr() == self._host.buffers[self._rank].data_ptr()
        assert arguments[0].nbytes % 16 == 0
        self.called.append(name)
        return arguments[-1]

    def _sum(self, mine: Tensor) -> Tensor:
        self._host.wait()
        parts = [buffer[: mine.nbytes].view(mine.dtype) for buffer in self._host.buffers]
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        self._host.wait()
        self._host.buffers[self._rank].fill_(SPOILED)
        return total
