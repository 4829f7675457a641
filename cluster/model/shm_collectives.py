"""ShmCollectives: the ranks of one host add up in memory that they share.

Owns the segment's life and the agreement of all ranks on using it; the arithmetic and the waiting
are compiled (`kernels/csrc/shm_group.h`). The segment is an anonymous file: it has no name, takes
nothing from /dev/shm, and is gone with the last rank however that ends. The others open it through
rank 0's process and check that it holds the token they were told.
"""

import contextlib
import importlib
import os
import secrets
from typing import Any

import msgspec
import torch
from torch import Tensor

SLOT_BYTES = 256 << 10
"""What a rank hands over at a time: fits its core's second-level cache beside the peer's."""
SPINS = 4000
"""Turns of busy waiting, 50 to 200 us: what ranks are apart within a step."""


class ShmUnavailableError(RuntimeError):
    """Shared memory cannot serve this group; the message says on which rank and why."""


class _Offer(msgspec.Struct, frozen=True):
    """What a rank tells the others before the first collective."""

    pid: int = 0
    file: int = -1
    """Rank 0's descriptor of the segment."""
    token: bytes = b""
    obstacle: str = ""
    """Why this rank cannot take part."""


class ShmCollectives:
    """Sums in float32, in the ranks' order: ((0 + 1) + (2 + 3)) + ..., whatever the timing."""

    name = "shm"
    capture_ok = False

    def __init__(self, group: Any) -> None:
        """`group`: the extension's ShmGroup."""
        self._group = group
        self._reduce = {
            torch.float32: group.all_reduce_float32,
            torch.bfloat16: group.all_reduce_bfloat16,
        }

    @classmethod
    def meet(cls, store: Any, rank: int, size: int, timeout_s: float) -> "ShmCollectives":
        """Meet over a torch store; either all ranks succeed or none does.

        Raises:
            ShmUnavailableError: on every rank, if any cannot take part.
            RuntimeError: a rank did not come in time, or died meanwhile.
        """
        with contextlib.ExitStack() as files:
            file, offer = _prepare(store, rank, size, files)
            _tell(store, rank, offer)
            offers = [_hear(store, peer) for peer in range(size)]
            for peer, one in enumerate(offers):
                if one.obstacle:
                    raise ShmUnavailableError(f"rank {peer}: {one.obstacle}")
            watched = [_watch(peer, one.pid, rank) for peer, one in enumerate(offers)]
            spins = SPINS if len(os.sched_getaffinity(0)) >= size else 0
            group = _extension().ShmGroup(file, rank, size, SLOT_BYTES, watched, timeout_s, spins)
        return cls(group)

    def all_reduce(self, x: Tensor) -> None:
        self._reduce[x.dtype](x.data_ptr(), x.numel())

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        self._group.all_gather(x.data_ptr(), out.data_ptr(), x.nbytes)

    def limit(self, timeout_s: float) -> None:
        """Keeps the time of the meeting: the end of a rank is seen at once, a hanging one by the
        watch of steps."""

    def close(self) -> None:
        self._group.leave()


def _extension() -> Any:
    module: Any = importlib.import_module("cluster.kernels._native")
    return module


def _prepare(store: Any, rank: int, size: int, files: contextlib.ExitStack) -> tuple[int, _Offer]:
    """(a descriptor of the segment or -1, what to tell the others)."""
    try:
        extension = _extension()
        if size > extension.SHM_MAX_RANKS:
            raise OSError(f"more than {extension.SHM_MAX_RANKS} ranks")
        if rank == 0:
            token = secrets.token_hex(extension.SHM_TOKEN_BYTES // 2).encode()
            file = _create(extension.shm_segment_bytes(size, SLOT_BYTES), token)
            files.callback(os.close, file)
        else:
            token, file = b"", _open(_hear(store, 0))
            files.callback(os.close, file)
    except ImportError:
        return -1, _Offer(obstacle="the compiled kernels are not there")
    except OSError as error:
        return -1, _Offer(obstacle=str(error))
    return file, _Offer(os.getpid(), file, token)


def _create(size: int, token: bytes) -> int:
    """A new segment, all of its memory reserved.

    Raises:
        OSError: the system gives no such file; the message names the remedy.
    """
    file = os.memfd_create("deeprequest-collectives", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        os.close(file)
        raise OSError(
            f"{size} bytes of shared memory cannot be had ({error.strerror}): raise the "
            "container's memory limit, or set collectives: gloo"
        ) from None
    os.pwrite(file, token, 0)
    return file


def _open(offer: _Offer) -> int:
    """The segment of rank 0. Raises OSError if it cannot be reached from this process."""
    if offer.obstacle:
        raise OSError("rank 0 has no segment")
    file = os.open(f"/proc/{offer.pid}/fd/{offer.file}", os.O_RDWR | os.O_CLOEXEC)
    if os.pread(file, len(offer.token), 0) != offer.token:
        os.close(file)
        raise OSError(f"process {offer.pid} is not rank 0 here: the ranks do not share a host")
    return file


def _watch(peer: int, pid: int, rank: int) -> int:
    """A descriptor that tells when the peer dies; -1 for this rank itself."""
    if peer == rank:
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise RuntimeError(f"rank {peer} cannot be watched: {error.strerror}") from None


def _tell(store: Any, rank: int, offer: _Offer) -> None:
    store.set(f"shm/{rank}", msgspec.json.encode(offer).decode())


def _hear(store: Any, rank: int) -> _Offer:
    return msgspec.json.decode(store.get(f"shm/{rank}"), type=_Offer)
