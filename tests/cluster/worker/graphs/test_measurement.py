from collections.abc import Callable, Sequence
from typing import Any

from cluster.worker.graphs.measurement import graph_bytes


class Graphs:
    """Takes 900 bytes for the first size and 40 for another, and for drafts 70 and 20 beside them,
    until it is gone."""

    def __init__(self, sizes: Sequence[int], device: "Gpu", *, drafts: bool) -> None:
        self.sizes, self.device, self.drafts = sizes, device, drafts

    def record(self, recorder: Any, on_recorded: Callable[[int], None]) -> None:
        for (cost, more), size in zip(((900, 70), (40, 20)), reversed(self.sizes), strict=False):
            for taken in (cost, more)[: 1 + self.drafts]:
                self.device.free -= taken
                on_recorded(size)

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


def measured(sizes: Sequence[int], kept: int = 0, *, drafts: bool = False) -> int:
    gpu = Gpu(kept)
    made: Any = lambda few: Graphs(few, gpu, drafts=drafts)  # noqa: E731
    return graph_bytes(made, sizes, gpu)


def test_every_size_but_the_largest_costs_what_the_second_largest_costs() -> None:
    assert measured([1, 2, 4, 8]) == 900 + 3 * 40


def test_what_stays_when_the_trial_is_gone_is_in_use_and_not_counted_again() -> None:
    assert measured([1, 2, 4, 8], kept=300) == 600 + 3 * 40


def test_one_size_costs_what_it_costs() -> None:
    assert measured([16]) == 900


def test_what_is_recorded_for_drafts_is_counted_with_its_size() -> None:
    assert measured([1, 2, 4, 8], drafts=True) == 970 + 3 * 60
    assert measured([16], drafts=True) == 970
