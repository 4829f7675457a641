from collections.abc import Callable, Sequence
from typing import Any

from cluster.worker.graphs.measurement import graph_bytes


class Graphs:
    """Takes 900 bytes for the first size and 40 for another, until it is gone."""

    def __init__(self, sizes: Sequence[int], device: "Gpu") -> None:
        self.sizes, self.device = sizes, device

    def record(self, recorder: Any, on_recorded: Callable[[int], None]) -> None:
        for cost, rows in zip((900, 40), reversed(self.sizes), strict=False):
            self.device.free -= cost
            on_recorded(rows)

    def __del__(self) -> None:
        self.device.free = 10_000 - self.device.kept


class Gpu:
    free = 10_000

    def __init__(self, kept: int) -> None:
        """`kept`: what somebody else made for the recordings, and keeps."""
        self.kept = kept

    def free_memory(self) -> int:
        return self.free

    def graph_recorder(self) -> Any:
        return None


def measured(sizes: Sequence[int], kept: int = 0) -> int:
    gpu = Gpu(kept)
    made: Any = lambda few: Graphs(few, gpu)  # noqa: E731
    return graph_bytes(made, sizes, gpu)


def test_every_size_but_the_largest_costs_what_the_second_largest_costs() -> None:
    assert measured([1, 2, 4, 8]) == 900 + 3 * 40


def test_what_stays_when_the_trial_is_gone_is_in_use_and_not_counted_again() -> None:
    assert measured([1, 2, 4, 8], kept=300) == 600 + 3 * 40


def test_one_size_costs_what_it_costs() -> None:
    assert measured([16]) == 900
