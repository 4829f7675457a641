"""What recorded steps will hold of a GPU's memory, measured before the KV cache takes the rest.

Owns the estimate: the largest size costs what it costs, each smaller one about as much as the
second largest, for it finds the largest's activations to share. The recordings are thrown away:
they were made over a cache of one block.
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
    free = [device.free_memory()]
    graphs = make(sizes[-2:])
    graphs.record(device.graph_recorder(), lambda rows: free.append(device.free_memory()))
    del graphs
    kept = max(0, free[0] - device.free_memory())  # by the attention backend: in use already
    first, *second = (before - after for before, after in itertools.pairwise(free))
    return max(0, first - kept) + sum(max(0, cost) for cost in second) * (len(sizes) - 1)
