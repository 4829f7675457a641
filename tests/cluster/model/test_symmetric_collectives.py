"""The protocol over a fake of torch's symmetric memory, whose ranks are threads."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cluster.model import all_reduce_choice, symmetric_collectives
from cluster.model.all_reduce_choice import KIB, MIB, Thresholds
from cluster.model.collectives import tree_sum
from cluster.model.symmetric_collectives import (
    SymmetricCollectives,
    SymmetricUnavailableError,
    meet,
)
from cluster.model.symmetric_memory import TorchSymmetricMemory
from tests.cluster.model.fake_symmetric import Group, Handle, Host, Operations

BUFFER = 64 * KIB
SMALL = Thresholds(4 * KIB, 2 * KIB, multimem=True)


class Library:
    """Stands for NCCL: counts, and adds up in numbers that nobody else gives."""

    name = "library"
    capture_ok = True

    def __init__(self) -> None:
        self.summed: list[int] = []

    def all_reduce(self, x: Tensor) -> None:
        self.summed.append(x.nbytes)
        x.fill_(7)

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        out.copy_(x.repeat(len(out) // len(x)))

    def limit(self, timeout_s: float) -> None:
        self.summed.append(-2)

    def close(self) -> None:
        self.summed.append(-1)


class Rank:
    def __init__(self, host: Host, rank: int, ordered: bool) -> None:
        self.rank = rank
        self.operations = Operations(host, rank)
        memory = TorchSymmetricMemory(
            host.buffers[rank], Handle(host, rank), Group(), self.operations
        )
        self.library = Library()
        self.collectives = SymmetricCollectives(memory, self.library, host.size, ordered)


def on_all(size: int, function: Callable[[Any], Any], members: Any) -> list[Any]:
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(function, members))


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Rank]]:
    monkeypatch.setattr(all_reduce_choice, "BUFFER_BYTES", BUFFER)
    monkeypatch.setattr(symmetric_collectives, "BUFFER_BYTES", BUFFER)
    monkeypatch.setattr(all_reduce_choice, "TABLE", dict.fromkeys((2, 4, 8), SMALL))

    def make(size: int, multicast: bool = False, ordered: bool = False) -> list[Rank]:
        host = Host(size, BUFFER, multicast)
        return [Rank(host, rank, ordered) for rank in range(size)]

    return make


def part(rank: int, call: int, count: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(call * 16 + rank)
    return torch.randn(count, generator=generator).to(dtype)


def sums(size: int, ordered: bool) -> Callable[[Rank], list[int]]:
    """Sums of many sizes, each held against the plain one; the calls that the library got."""

    def check(rank: Rank) -> list[int]:
        chosen = random.Random(size)
        for call in range(60):
            dtype = chosen.choice([torch.bfloat16, torch.float32])
            largest = BUFFER // dtype.itemsize
            count = 8 * chosen.randint(1, largest >> chosen.randrange(3, 10))
            everyone = [part(r, call, count, dtype) for r in range(size)]
            mine = everyone[rank.rank].clone().view(8, -1)
            rank.collectives.all_reduce(mine)
            want = tree_sum([one.float() for one in everyone]).to(dtype)
            if ordered:
                assert torch.equal(mine.view(-1), want)
            else:
                torch.testing.assert_close(mine.view(-1), want, rtol=3e-2, atol=6e-2)
        return rank.library.summed

    return check


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("multicast", [False, True])
def test_sums_are_right_and_every_rank_takes_the_same_way(
    ranks: Callable[..., list[Rank]], size: int, multicast: bool
) -> None:
    members = ranks(size, multicast)
    assert on_all(size, sums(size, False), members) == [[]] * size
    ways = [rank.operations.called for rank in members]
    assert ways == [ways[0]] * size
    larger = "multimem_all_reduce_" if multicast else "two_shot_all_reduce_out"
    assert set(ways[0]) == {"one_shot_all_reduce_copy_out", larger}


@pytest.mark.parametrize("size", [2, 4, 8])
def test_in_order_the_bits_are_those_of_shared_memory(
    ranks: Callable[..., list[Rank]], size: int
) -> None:
    members = ranks(size, multicast=True, ordered=True)
    assert on_all(size, sums(size, True), members) == [[]] * size
    assert not members[0].operations.called
    assert members[0].collectives.name == "symmetric memory, multicast in order"


def test_in_order_a_sum_larger_than_the_buffer_is_made_in_pieces(
    ranks: Callable[..., list[Rank]],
) -> None:
    count = BUFFER // 4 * 2 + 40

    def check(rank: Rank) -> None:
        everyone = [part(r, 1, count, torch.float32) for r in range(4)]
        mine = everyone[rank.rank].clone()
        rank.collectives.all_reduce(mine)
        assert torch.equal(mine, tree_sum(everyone))

    on_all(4, check, ranks(4, ordered=True))


def test_what_does_not_fit_goes_to_the_library(ranks: Callable[..., list[Rank]]) -> None:
    rank = ranks(2)[0]
    reduce = rank.collectives.all_reduce
    large = torch.ones(BUFFER // 2 + 8, dtype=torch.bfloat16)
    reduce(large)
    odd, shifted = torch.ones(7), torch.ones(17)[1:]
    reduce(odd)
    reduce(shifted)
    reduce(torch.ones(8, dtype=torch.int64))
    reduce(torch.ones(0))
    assert rank.library.summed == [BUFFER + 16, 28, 64, 64, 0]
    assert not rank.operations.called
    assert (large == 7).all()


def test_gathering_limits_and_leaving_are_the_librarys(ranks: Callable[..., list[Rank]]) -> None:
    rank = ranks(2)[0]
    out = torch.empty(4)
    rank.collectives.all_gather(torch.tensor([1.0, 2.0]), out)
    assert out.tolist() == [1, 2, 1, 2]
    rank.collectives.limit(1.0)
    rank.collectives.close()
    assert rank.library.summed == [-2, -1]


def meeting(obstacles: list[str], failures: list[str]) -> list[str]:
    """What every rank is told when these hinder it before, or while it maps the memory."""
    distributed: Any = dist
    store = distributed.HashStore()

    def join(rank: int) -> str:
        def make() -> Any:
            if failures[rank]:
                raise RuntimeError(failures[rank] + "\na trace that nobody reads")
            return "memory"

        try:
            return str(meet(store, rank, len(obstacles), make, obstacles[rank]))
        except SymmetricUnavailableError as error:
            return str(error)

    return on_all(len(obstacles), join, range(len(obstacles)))


def test_either_all_ranks_have_it_or_none() -> None:
    assert meeting(["", "", ""], ["", "", ""]) == ["memory"] * 3
    assert meeting(["", "no peer access", ""], ["", "", ""]) == ["rank 1: no peer access"] * 3
    assert meeting(["", "", ""], ["", "", "cuMemMap"]) == ["rank 2: cuMemMap"] * 3


def test_the_buffer_holds_a_prefill_chunk_of_the_32b() -> None:
    assert 2048 * 5120 * 2 <= all_reduce_choice.BUFFER_BYTES == 32 * MIB
