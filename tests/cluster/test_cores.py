import os
from pathlib import Path

import pytest

from cluster import cores


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What the process was pinned to, on a host of four cores with two hyper-threads each."""
    chosen: list[list[int]] = []
    monkeypatch.setattr(cores, "allowed_cores", lambda: [(0, 4), (1, 5), (2, 6), (3, 7)])
    monkeypatch.setattr(cores, "cpu_quota", lambda: None)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: chosen.append(cpus))
    return chosen


def test_cores_are_those_the_process_was_given() -> None:
    cpus = {cpu for core in cores.allowed_cores() for cpu in core}
    assert cpus == os.sched_getaffinity(0)


def test_ranks_share_the_cores(pinned: list[list[int]]) -> None:
    assert [cores.threads_per_rank(None, ranks) for ranks in (1, 2, 3, 8)] == [4, 2, 1, 1]
    assert cores.threads_per_rank(3, 2) == 3


def test_a_quota_limits_threads_and_forbids_pinning_by_default(
    pinned: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda: 2.5)
    assert cores.threads_per_rank(None, 2) == 1
    assert not cores.pin_rank(0, 2, 2, None)
    assert cores.pin_rank(0, 2, 2, True)


def test_ranks_that_take_all_cores_are_pinned_to_their_own(pinned: list[list[int]]) -> None:
    assert cores.pin_rank(0, 2, 2, None)
    assert cores.pin_rank(1, 2, 2, None)
    assert pinned == [[0, 4, 1, 5], [2, 6, 3, 7]]


@pytest.mark.parametrize(
    ("ranks", "threads", "wanted"), [(1, 4, None), (2, 1, None), (2, 2, False), (8, 1, True)]
)
def test_nobody_is_pinned_where_cores_are_spare_few_or_it_is_forbidden(
    pinned: list[list[int]], ranks: int, threads: int, wanted: bool | None
) -> None:
    assert not cores.pin_rank(0, ranks, threads, wanted)
    assert pinned == []


def test_a_quota_is_read_from_the_container(tmp_path: Path) -> None:
    path = tmp_path / "cpu.max"
    assert cores.cpu_quota(path) is None
    path.write_text("max 100000\n")
    assert cores.cpu_quota(path) is None
    path.write_text("250000 100000\n")
    assert cores.cpu_quota(path) == 2.5
