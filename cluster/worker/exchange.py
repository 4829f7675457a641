"""Several small tensors of every rank, in one collective."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cluster.model.parallel import TPGroup


def exchange(group: TPGroup, parts: Sequence[Tensor]) -> list[Tensor]:
    """All-gather float32 tensors of equal shapes on all ranks; each comes back as [R, *shape]."""
    ranks = group.size
    if ranks == 1:
        return [part.unsqueeze(0) for part in parts]
    packed = group.all_gather(torch.cat([part.reshape(-1) for part in parts]))
    pieces = torch.split(packed.view(ranks, -1), [part.numel() for part in parts], dim=1)
    return [piece.reshape(ranks, *part.shape) for piece, part in zip(pieces, parts, strict=True)]


def side_by_side(gathered: Tensor) -> Tensor:
    """[R, n, k] -> [n, R * k], rank 0's columns first."""
    ranks, rows, columns = gathered.shape
    return gathered.transpose(0, 1).reshape(rows, ranks * columns)
