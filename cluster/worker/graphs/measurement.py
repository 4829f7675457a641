"""What recorded steps will hold of a GPU's memory, measured before the KV cache takes the rest.

Owns the estimate: the largest size costs what it costs, each smaller one about as much as the
second largest, for it finds the largest's activations to share; a size may be recorded several
times. The recordings are thrown away: they were made over a cache of one block.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

from cluster.worker.graphs.decode_graphs import DecodeGraphs, Recorder


class MeasuredDevice(Protocol):
    """What is needed of `cluster.device.Device`."""

    def free_memory(self) -> int: ...

    def graph_recorder(self) -> Recorder: ...


def graph_bytes(
    make: Callable[[Sequence[int]], DecodeGraphs], sizes: Sequence[int], device: MeasuredDevice
) -> int:
    """Bytes that graphs of all `sizes` (ascending) will take, buffers included.

    Args:
        make: unrecorded graphs of some sizes.
    """
    free, recorded = [device.free_memory()], list[int]()

    def note(size: int) -> None:
        recorded.append(size)
        free.append(device.free_memory())

    graphs = make(sizes[-2:])
    graphs.record(device.graph_recorder(), note)
    del graphs
    kept = max(0, free[0] - device.free_memory())  # by the attention backend: in use already
    costs = [max(0, before - after) for before, after in itertools.pairwise(free)]
    largest = recorded.count(sizes[-1])
    second = sum(costs[largest:]) * (len(sizes) - 1)
    return max(0, sum(costs[:largest]) - kept) + second
