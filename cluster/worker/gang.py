"""Gang: the processes of one replica, one per tensor-parallel rank.

Owns what a rank is told at its start, and how the function that a rank runs is named in another
process. Refuses to know that function: it is injected, for a worker must not reach the engine.
Imports nothing heavy: a rank's environment must be set before torch is imported.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from cluster.config import EngineConfig
from cluster.cores import threads_per_rank
from cluster.worker.interface import interface_towards

_INTERFACES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}
"""`=` makes nccl take the name whole; without it, `eth1` also means `eth10`."""


class RankSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that a rank is told; the rest it learns from the replica over its link."""

    config: EngineConfig
    rank: int
    size: int
    replica_address: str
    """Where the replica listens: `unix:///path` or `tcp://host:port`."""
    token: str
    """Proves to the replica and to rank 0 that this is one of their ranks."""
    directory: str | None
    """Private to this gang, mode 0700, when all ranks are on the replica's node; else None."""


RankMain = Callable[[RankSpec], None]


class Gang(Protocol):
    """Processes that were started; the constructor of each kind starts them without waiting."""

    def dead(self) -> dict[int, str]:
        """Ranks whose process is gone, and how it went. May block for milliseconds."""

    def kill(self) -> None:
        """End every rank that is left and reap it. May block for seconds; may be repeated."""


class Launch(msgspec.Struct, frozen=True):
    """What the new process gets: the name of its function and that function's argument."""

    main: str
    spec: RankSpec

    @classmethod
    def of(cls, main: RankMain, spec: RankSpec) -> "Launch":
        """Raises ValueError if `main` cannot be found by name in another process."""
        if main.__module__ == "__main__" or not main.__qualname__.isidentifier():
            raise ValueError(f"{main.__qualname__} must be a function of an importable module")
        return cls(f"{main.__module__}:{main.__qualname__}", spec)

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @staticmethod
    def decode(data: bytes) -> "Launch":
        """Raises msgspec.DecodeError if `data` is not a launch."""
        return msgspec.msgpack.decode(data, type=Launch)

    def run(self) -> None:
        """Become the rank: environment first, then the import of its function, then the call."""
        os.environ.update(rank_environment(self.spec))
        module, name = self.main.split(":")
        main: RankMain = getattr(importlib.import_module(module), name)
        main(self.spec)


def rank_environment(spec: RankSpec) -> dict[str, str]:
    """What libraries read once, when they are loaded.

    On one node ranks meet on the loopback interface; between nodes on the one that leads to the
    replica, unless the operator's own GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name another. With
    InfiniBand nccl only meets there, and finds its adapters itself.
    """
    variables = {"OMP_NUM_THREADS": str(threads_per_rank(spec.config.threads_per_rank, spec.size))}
    if spec.directory is not None:
        return variables | {name: form.format("lo") for name, form in _INTERFACES.items()}
    interface = interface_towards(spec.replica_address)
    for name, form in _INTERFACES.items():
        if interface is not None and name not in os.environ:
            variables[name] = form.format(interface)
    return variables


def visible_gpus(rank: int, given: Sequence[tuple[str, Sequence[str]]]) -> str | None:
    """CUDA_VISIBLE_DEVICES of a rank: all GPUs that the gang has on its node, for only GPUs that
    see each other can have a switch add up for them.

    The rank's own is number `rank` modulo their count, which is the one that it takes; where ranks
    of a node follow each other, all ranks see all GPUs in the same order.

    Args:
        given: of every rank, the node and the GPUs that it was given there.

    Returns None where GPUs are shared or there are none: what is visible then stays so.
    """
    node, own = given[rank]
    here = [gpu for where, gpus in given if where == node for gpu in gpus]
    if len(own) != 1 or len(set(here)) < len(here):
        return None
    shift = here.index(own[0]) - rank
    return ",".join(here[(number + shift) % len(here)] for number in range(len(here)))
