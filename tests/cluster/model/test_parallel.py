import dataclasses
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cluster.kernels.torch_kernels import TorchKernels
from cluster.model.parallel import (
    ColumnParallelLinear,
    ParallelLMHead,
    Placement,
    RowParallelLinear,
    TensorShard,
    VocabParallelEmbedding,
)
from cluster.model.tp_group import TPGroup


def fill(shards: list[TensorShard], full: dict[str, torch.Tensor]) -> None:
    for shard in shards:
        tensor = full[shard.name]
        assert tuple(tensor.shape) == shard.full_shape
        size = shard.sink.shape[shard.dim]
        shard.sink.write(0, tensor.narrow(shard.dim, shard.start, size))


def here(group: TPGroup) -> Placement:
    device = torch.device("cpu")
    return Placement(group, device, torch.float32, TorchKernels(device, torch.float32))


def test_one_rank_needs_no_process_group() -> None:
    group = TPGroup()
    x = torch.arange(3.0)
    assert group.all_reduce(x) is x
    assert group.all_gather(x) is x
    group.close()


def test_a_group_must_fit_its_rank_and_have_a_way_to_speak() -> None:
    with pytest.raises(ValueError, match="outside a group of 2"):
        TPGroup(2, 2, object())
    with pytest.raises(ValueError, match="needs a process group"):
        TPGroup(0, 2)
    with pytest.raises(ValueError, match="neither file"):
        TPGroup.join(0, 2, "udp://x", "gloo")
    assert TPGroup.join(0, 1, "", "gloo").size == 1


def _meet(rank: int, rendezvous: str, results: Any) -> None:
    torch.set_num_threads(1)
    group = TPGroup.join(rank, 2, rendezvous, "gloo", timeout_s=30)
    with torch.inference_mode():
        total = group.all_reduce(torch.full((2, 3), rank + 1.0))
        flat = group.all_gather(torch.tensor([rank, rank]))
        wide = group.all_gather(torch.tensor([[rank * 10.0], [rank * 10.0 + 1]]))
        scalar = group.all_gather(torch.tensor([7 + rank], dtype=torch.int64))
    results.put((rank, total.tolist(), flat.tolist(), wide.tolist(), scalar.tolist()))
    group.close()


def test_two_processes_meet_through_a_file_and_speak_gloo(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    rendezvous = f"file://{tmp_path}/meeting"
    ranks = [
        context.Process(target=_meet, args=(rank, rendezvous, results), daemon=True)
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    answers = sorted(results.get(timeout=60) for _ in ranks)
    for rank in ranks:
        rank.join(30)
    want = [[3.0] * 3] * 2, [0, 0, 1, 1], [[0.0, 10.0], [1.0, 11.0]], [7, 8]
    assert answers == [(0, *want), (1, *want)]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_column_then_row_is_the_whole_layer(size: int, ranks: Callable[[int], Any]) -> None:
    torch.manual_seed(0)
    full = {
        "a.weight": torch.randn(8, 6),
        "a.bias": torch.randn(8),
        "b.weight": torch.randn(4, 6),
        "b.bias": torch.randn(4),
        "x.a.weight": torch.randn(8, 6),
        "down.weight": torch.randn(5, 8),
    }
    full |= {f"x.{name}": full[name] for name in ("a.bias", "b.weight", "b.bias", "a.weight")}
    x = torch.randn(3, 6)

    def forward(group: TPGroup) -> tuple[torch.Tensor, torch.Tensor]:
        column = ColumnParallelLinear(6, {"a": 8, "b": 4}, True, here(group))
        row = RowParallelLinear(8, 5, here(group))
        fill([*column.shards("x"), *row.shards("down")], full)
        a, b = column(x).split([8 // size, 4 // size], -1)
        return row(a), group.all_gather(b)

    for down, b in ranks(size).run(forward):
        want = F.linear(x, full["a.weight"], full["a.bias"])
        torch.testing.assert_close(down, F.linear(want, full["down.weight"]))
        torch.testing.assert_close(b, F.linear(x, full["b.weight"], full["b.bias"]))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_embedding_and_head_are_split_by_vocabulary(size: int, ranks: Callable[[int], Any]) -> None:
    torch.manual_seed(0)
    full = {"e.weight": torch.randn(12, 6), "h.weight": torch.randn(12, 6)}
    ids = torch.tensor([0, 11, 5, 6, 3, 2, 9])

    def forward(group: TPGroup) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        embedding = VocabParallelEmbedding(12, 6, here(group))
        head = ParallelLMHead(12, 6, here(group))
        fill([*embedding.shards("e"), *head.shards("h")], full)
        x = embedding(ids)
        tied = VocabParallelEmbedding(12, 6, here(group), head.weight)
        assert list(tied.shards("e")) == []
        return x, group.all_gather(head(x)), tied(ids)

    for x, logits, tied in ranks(size).run(forward):
        torch.testing.assert_close(x, full["e.weight"][ids])
        torch.testing.assert_close(logits, x @ full["h.weight"].T)
        torch.testing.assert_close(tied, full["h.weight"][ids])


def test_a_split_that_does_not_come_out_even_is_refused(ranks: Callable[[int], Any]) -> None:
    group = ranks(2).groups[0]
    with pytest.raises(ValueError, match="input of 7 cannot be split over 2 ranks"):
        RowParallelLinear(7, 4, here(group))


@pytest.mark.parametrize("size", [1, 2])
def test_a_deterministic_sum_has_the_same_bits_over_any_number_of_ranks(
    size: int, ranks: Callable[[int], Any]
) -> None:
    generator = torch.Generator().manual_seed(3)
    full = {"down.weight": torch.randn(16, 64, generator=generator)}
    x = torch.randn(5, 64, generator=generator)
    parts = [F.linear(x[:, i : i + 8], full["down.weight"][:, i : i + 8]) for i in range(0, 64, 8)]
    pairs = [parts[i] + parts[i + 1] for i in range(0, 8, 2)]
    want = (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])

    def forward(group: TPGroup) -> torch.Tensor:
        where = dataclasses.replace(here(group), deterministic=True)
        row = RowParallelLinear(64, 16, where)
        fill(list(row.shards("down")), full)
        summed: torch.Tensor = row(x.chunk(size, -1)[group.rank])
        return summed

    for got in ranks(size).run(forward):
        assert torch.equal(got, want)
