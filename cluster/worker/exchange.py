"""Several small tensors of every rank, in one collective, on the host."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.model.tp_group import TPGroup

Floats = npt.NDArray[np.float32]


def exchange(group: TPGroup, parts: Sequence[Tensor]) -> list[Floats]:
    """All-gather float32 tensors of equal shapes on all ranks; each comes back as [R, *shape]."""
    ranks = group.size
    if ranks == 1 and parts[0].device.type == "cpu":
        return [part.unsqueeze(0).numpy() for part in parts]
    host = _packed(group, parts).cpu().numpy()
    ends = np.cumsum([part.numel() for part in parts])
    pieces = np.split(host, ends[:-1], axis=1)
    return [piece.reshape(ranks, *part.shape) for piece, part in zip(pieces, parts, strict=True)]


def gather(group: TPGroup, parts: Sequence[Tensor]) -> list[Tensor]:
    """The same where the tensors are; nothing waits for the host."""
    packed = _packed(group, parts)
    pieces, start = [], 0
    for part in parts:
        piece = packed[:, start : start + part.numel()]
        pieces.append(piece.reshape(group.size, *part.shape))
        start += part.numel()
    return pieces


def _packed(group: TPGroup, parts: Sequence[Tensor]) -> Tensor:
    """[R, all elements]"""
    packed = group.all_gather(torch.cat([part.reshape(-1) for part in parts]))
    return packed.view(group.size, -1)


def side_by_side(gathered: Floats) -> Floats:
    """[R, n, k] -> [n, R * k], rank 0's columns first."""
    beside: Floats = np.concatenate(list(gathered), axis=-1)
    return beside
