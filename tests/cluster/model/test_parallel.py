import dataclasses
from collections.abc import Callable
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
        both, cut = column(x), 8 // size
        a, b = both[:, :cut], both[:, cut:]
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
