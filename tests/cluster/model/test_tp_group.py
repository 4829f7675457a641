import logging
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from cluster.kernels import native
from cluster.model import shm_collectives
from cluster.model.tp_group import TPGroup

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CALLS = 3000
Test = Callable[[TPGroup, Any], object]

needs_extension = pytest.mark.skipif(native.load()[0] is None, reason="no compiled kernels")


def _rank(rank: int, size: int, where: str, backend: Any, test: Test, told: Any, args: Any) -> None:
    torch.set_num_threads(1)
    try:
        timeout_s, ordered = args.get("timeout_s", 30.0), args.get("ordered", False)
        group = TPGroup.join(rank, size, where, backend, timeout_s, ordered)
        told.put((rank, test(group, args)))
        group.close()
    except Exception as error:
        told.put((rank, error))


class Processes:
    """Real rank processes, all of which run one function of this module."""

    def __init__(self, folder: Path) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._folder = folder
        self.rendezvous: str | None = None
        """None: a file of this host."""
        self.ranks: list[Any] = []

    def start(self, size: int, test: Test, backend: str = "shm", **args: Any) -> None:
        self.told = self._context.Queue()
        where = self.rendezvous or f"file://{self._folder}/{len(self.ranks)}"
        for rank in range(size):
            arguments = (rank, size, where, backend, test, self.told, args)
            process = self._context.Process(target=_rank, args=arguments, daemon=True)
            process.start()
            self.ranks.append(process)

    def answers(self, count: int) -> dict[int, Any]:
        return dict(self.told.get(timeout=60) for _ in range(count))

    def end(self) -> None:
        for process in self.ranks:
            process.join(10)
            process.kill()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.end()


def values(rank: int, call: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(call * 16 + rank)
    return torch.randn(shape, generator=generator).to(dtype)


def tree(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum in the order that is promised, in float32, rounded once."""
    sums = [part.float() for part in parts]
    while len(sums) > 1:
        sums = [
            sums[i] + sums[i + 1] if i + 1 < len(sums) else sums[i] for i in range(0, len(sums), 2)
        ]
    return sums[0].to(parts[0].dtype)


def test_one_rank_needs_no_collectives() -> None:
    group = TPGroup()
    x = torch.arange(3.0)
    assert group.all_reduce(x) is x
    assert group.all_gather(x) is x
    assert group.collectives == "none"
    group.close()


def test_a_group_must_fit_its_rank_and_have_a_way_to_speak() -> None:
    with pytest.raises(ValueError, match="outside a group of 2"):
        TPGroup(2, 2)
    with pytest.raises(ValueError, match="needs collectives"):
        TPGroup(0, 2)
    with pytest.raises(ValueError, match="neither file"):
        TPGroup.join(0, 2, "udp://x", "gloo")
    assert TPGroup.join(0, 1, "", "auto").size == 1


def sum_and_gather(group: TPGroup, args: Any) -> str:
    """Random sizes, dtypes and layouts, beyond a slot and empty, against the plain sum."""
    chosen = random.Random(7)
    longest = 600_000  # two rows: beyond what is gathered at a time
    sizes = [0, 1, 17, 65_536, 65_537, longest] + [chosen.randrange(1, 9_000) for _ in range(40)]
    for call, columns in enumerate(sizes):
        dtype = DTYPES[chosen.choice(list(DTYPES))]
        everyone = [values(rank, call, (2, columns), dtype) for rank in range(group.size)]
        mine = everyone[group.rank]
        x = mine.t().contiguous().t() if call % 5 == 0 else mine.clone()
        assert torch.equal(group.all_gather(mine), torch.cat(everyone, -1)), columns
        assert group.all_reduce(x) is x
        if group.collectives in ("shm", "gloo in order"):
            assert torch.equal(x, tree(everyone)), (columns, dtype)
        else:
            torch.testing.assert_close(x, tree(everyone), rtol=2e-2, atol=2e-2)
    flat = group.all_gather(torch.tensor([group.rank, 7], dtype=torch.int64))
    assert flat.tolist() == [part for rank in range(group.size) for part in (rank, 7)]
    return group.collectives


@needs_extension
@pytest.mark.parametrize("size", [2, 3, 4])
def test_shared_memory_sums_in_the_ranks_order(processes: Processes, size: int) -> None:
    processes.start(size, sum_and_gather)
    assert processes.answers(size) == dict.fromkeys(range(size), "shm")


def test_gloo_answers_the_same_calls(processes: Processes) -> None:
    processes.start(2, sum_and_gather, "gloo")
    assert processes.answers(2) == {0: "gloo", 1: "gloo"}


@pytest.mark.parametrize("size", [3, 4])
def test_gloo_in_order_has_the_bits_of_shared_memory(processes: Processes, size: int) -> None:
    processes.start(size, sum_and_gather, "gloo", ordered=True)
    assert processes.answers(size) == dict.fromkeys(range(size), "gloo in order")


def many_calls(group: TPGroup, args: Any) -> int:
    """Ranks drift apart by chance; no call may see the numbers of another."""
    drift = random.Random(group.rank)
    for call in range(CALLS):
        x = torch.full((1 + call % 900,), float(call * 16 + group.rank))
        group.all_reduce(x)
        want = sum(call * 16 + rank for rank in range(group.size))
        assert [float(x[0]), float(x[-1])] == [want, want], call
        if drift.random() < 0.003:
            time.sleep(0.002)
    return CALLS


@needs_extension
@pytest.mark.parametrize("size", [2, 4])
def test_thousands_of_calls_in_a_row_do_not_mix(processes: Processes, size: int) -> None:
    processes.start(size, many_calls)
    assert processes.answers(size) == dict.fromkeys(range(size), CALLS)


def die_or_wait(group: TPGroup, args: Any) -> tuple[str, float]:
    group.all_reduce(torch.ones(5))
    if group.rank == 1:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        group.all_reduce(torch.ones(200_000))
    except RuntimeError as error:
        noticed = time.time()
        with pytest.raises(RuntimeError, match="has ended"):
            group.all_reduce(torch.ones(1))
        return str(error), noticed
    raise AssertionError("a sum without rank 1")


@needs_extension
@pytest.mark.parametrize("size", [2, 4])
def test_a_death_in_a_collective_ends_it_for_all_others(processes: Processes, size: int) -> None:
    before = set(os.listdir("/dev/shm"))
    processes.start(size, die_or_wait)
    processes.ranks[1].join(60)
    died = time.time()
    answers = processes.answers(size - 1)
    assert sorted(answers) == [rank for rank in range(size) if rank != 1]
    for text, noticed in answers.values():
        assert "rank 1 is gone" in text or "gave up" in text
        assert noticed - died < 1
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "deeprequest" in name}


@pytest.fixture
def nodes(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> Processes:
    """Ranks that meet as those of several nodes do."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        processes.rendezvous = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    return processes


def lose_rank_1(group: TPGroup, args: Any) -> str:
    group.all_reduce(torch.ones(5))
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            group.all_reduce(torch.ones(200_000))
    except RuntimeError as error:
        return str(error)


def test_between_nodes_a_death_ends_the_others_collective(nodes: Processes) -> None:
    nodes.start(3, lose_rank_1, "auto", timeout_s=600.0)
    assert sorted(nodes.answers(2)) == [0, 2]  # long before the 600 s


def hang_in_a_step(group: TPGroup, args: Any) -> str:
    group.all_reduce(torch.ones(5))
    group.limit(1.0)
    if group.rank == 1:
        time.sleep(20)
    try:
        group.all_reduce(torch.ones(5))
    except RuntimeError as error:
        return str(error)
    return "summed"


def test_once_steps_are_quick_a_hanging_rank_is_not_waited_for(nodes: Processes) -> None:
    nodes.start(2, hang_in_a_step, "auto", timeout_s=600.0)
    rank, told = nodes.told.get(timeout=60)
    assert rank == 0
    assert "1000ms" in told
    nodes.ranks[1].kill()


def come_late(group: TPGroup, args: Any) -> str:
    if group.rank == 1:
        time.sleep(2)
    try:
        group.all_reduce(torch.ones(5))
    except RuntimeError as error:
        return str(error)
    return "in time"


@needs_extension
def test_a_rank_that_does_not_come_is_named_after_the_deadline(processes: Processes) -> None:
    processes.start(2, come_late, timeout_s=1.0)
    answers = processes.answers(2)
    assert "rank 1 did not come in time" in answers[0]
    assert "has ended" in answers[1]


def disagree(group: TPGroup, args: Any) -> str:
    try:
        group.all_reduce(torch.ones(5 + group.rank))
    except RuntimeError as error:
        return str(error)
    return "summed"


@needs_extension
def test_ranks_that_do_not_sum_the_same_are_told(processes: Processes) -> None:
    processes.start(2, disagree)
    assert any("is in another collective" in text for text in processes.answers(2).values())


def leave_early(group: TPGroup, args: Any) -> str:
    group.all_reduce(torch.ones(5))
    if group.rank == 1:
        group.close()
        time.sleep(0.5)
    try:
        group.all_reduce(torch.ones(5))
    except RuntimeError as error:
        return str(error)
    return "summed"


@needs_extension
def test_who_left_is_not_waited_for(processes: Processes) -> None:
    processes.start(2, leave_early)
    answers = processes.answers(2)
    assert "rank 1 has left" in answers[0]
    assert "this rank has left" in answers[1]


def _join_without_memory(rank: int, where: str, backend: Literal["auto", "shm"], told: Any) -> None:
    def refuse(size: int, token: bytes) -> int:
        raise OSError("28 bytes of shared memory cannot be had: set collectives: gloo")

    if rank == 0:
        shm_collectives._create = refuse
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("cluster.model.tp_group").addHandler(handler)
    try:
        group = TPGroup.join(rank, 2, where, backend, timeout_s=30)
        told.put((rank, group.collectives, lines))
        group.close()
    except RuntimeError as error:
        told.put((rank, type(error).__name__, [str(error)]))


@needs_extension
@pytest.mark.parametrize(("backend", "what"), [("auto", "gloo"), ("shm", "ShmUnavailableError")])
def test_all_ranks_agree_on_gloo_or_on_refusing(tmp_path: Path, backend: str, what: str) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    where = f"file://{tmp_path}/meeting"
    arguments = [(rank, where, backend, told) for rank in range(2)]
    ranks = [context.Process(target=_join_without_memory, args=a, daemon=True) for a in arguments]
    for rank in ranks:
        rank.start()
    for _ in ranks:
        _, got, lines = told.get(timeout=60)
        assert got == what
        assert "rank 0" in lines[0]
        assert "set collectives: gloo" in lines[0]
    for rank in ranks:
        rank.join(30)
