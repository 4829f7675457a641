"""Cores: which of them this process may compute on, and how the ranks of a host share them.

Owns the questions to the kernel about affinity, hyper-threads and CPU quotas, and the pinning.
Imports nothing heavy: a rank's number of threads must be known before torch is imported.
"""

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def allowed_cores() -> list[tuple[int, ...]]:
    """The physical cores this process may run on, each as its logical CPUs (hyper-threads)."""
    if not hasattr(os, "sched_getaffinity"):
        return [(number,) for number in range(os.cpu_count() or 1)]
    cores: dict[str, list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = _TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            core = siblings.read_text()
        except OSError:
            core = str(cpu)
        cores.setdefault(core, []).append(cpu)
    return [tuple(cpus) for cpus in cores.values()]


def cpu_quota(path: Path = _QUOTA) -> float | None:
    """CPUs' worth of time the container may use; None: no limit is set."""
    try:
        quota, period = path.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # absent, or the word "max"
        return None


def threads_per_rank(wanted: int | None, ranks: int) -> int:
    """One thread per core, the cores shared among the ranks of this host; at least one."""
    if wanted is not None:
        return wanted
    quota = cpu_quota()
    cores = len(allowed_cores())
    usable = cores if quota is None else min(cores, max(1, int(quota)))
    return max(1, usable // ranks)


def pin_rank(rank: int, ranks: int, threads: int, wanted: bool | None) -> bool:
    """Pin this process to `threads` cores of its own; whether it was done.

    Nobody is pinned where cores are too few for all ranks. By default ranks are pinned only where
    they take all cores there are: else a second replica would choose the same ones, as would a
    neighbour where a quota shares out cores that nobody owns.
    """
    cores = allowed_cores()
    if wanted is False or ranks * threads > len(cores) or not hasattr(os, "sched_setaffinity"):
        return False
    idle = len(cores) - ranks * threads
    if wanted is None and (ranks == 1 or idle >= ranks or cpu_quota() is not None):
        return False
    mine = cores[rank * threads : (rank + 1) * threads]
    os.sched_setaffinity(0, [cpu for core in mine for cpu in core])
    return True
