"""A GPU's recordings without a GPU: operations are noted once and carried out again.

As on a GPU, Python runs only while recording, so whatever it read from the host stays as it was;
asking the device for a number while recording is an error; and between two replays the memory
belongs to others: all inputs and all that was computed is poison until it is written anew.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cluster.attention.backend import AttentionMetadata, RotaryTable
from cluster.attention.cpu import rotary_angles, rotate
from cluster.worker.graphs.decode_buffers import DecodeBuffers

IMPOSSIBLE = 1 << 30
"""As a token, a slot, a page or a length: out of every range."""
ASKS_THE_DEVICE = ("_local_scalar_dense", "nonzero", "item", "is_nonzero")


class _Notes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation, and which memory it took anew."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.taken: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ASKS_THE_DEVICE:
            raise RuntimeError(f"{func} waits for the device while a graph is recorded")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = {leaf.untyped_storage().data_ptr() for leaf in _tensors((args, kwargs))}
        made = _tensors(out)
        self.taken += [t for t in made if t.untyped_storage().data_ptr() not in given]
        self.calls.append((func, args, kwargs, made))
        return out


class Recording:
    """One graph."""

    def __init__(self, run: Callable[[], None], poison_inputs: Callable[[], None]) -> None:
        with _Notes() as notes:
            run()
        self._notes = notes
        self._poison_inputs = poison_inputs
        self.replays = 0

    def replay(self) -> None:
        for memory in self._notes.taken:
            memory.fill_(math.nan if memory.is_floating_point() else 1)
        for func, args, kwargs, noted in self._notes.calls:
            for again, memory in zip(_tensors(func(*args, **kwargs)), noted, strict=True):
                if again.data_ptr() != memory.data_ptr():
                    memory.copy_(again)
        self.replays += 1
        self._poison_inputs()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class FakeRecorder:
    """Records on a CPU."""

    def __init__(self, buffers: DecodeBuffers | None = None) -> None:
        """`buffers`: to poison between replays."""
        self.buffers = buffers
        self.recordings: list[Recording] = []

    def record(self, run: Callable[[], None]) -> Recording:
        self.recordings.append(Recording(run, self._poison))
        return self.recordings[-1]

    def _poison(self) -> None:
        if self.buffers is not None:
            b = self.buffers
            for tensor in (b.token_ids, b.positions, b.slots, b.seq_lens, b.block_table, b.cuts):
                tensor.fill_(IMPOSSIBLE)


class DeviceAttention:
    """Short rows alone, with all bookkeeping on the device: what a backend needs for graphs."""

    name = "device"
    signature = "device"
    captured_queries = 4

    def __init__(self, eager: Any) -> None:
        """`eager`: serves all other steps."""
        self._eager = eager

    def plan(self, metadata: AttentionMetadata) -> Any:
        short = metadata.max_q <= self.captured_queries
        return DevicePlan(metadata) if short else self._eager.plan(metadata)


class DevicePlan:
    """Reads the metadata's tensors at every call."""

    def __init__(self, metadata: AttentionMetadata) -> None:
        self._metadata = metadata

    def attend(
        self, kv_layer: Tensor, qkv: Tensor, rotary: RotaryTable, wanted: Tensor | None = None
    ) -> Tensor:
        meta = self._metadata
        kv_heads = kv_layer.shape[3]
        turned = rotate(qkv[:, :-kv_heads], *rotary_angles(rotary, meta.positions))
        slots = kv_layer.view(2, -1, *kv_layer.shape[3:])
        slots[0].index_copy_(0, meta.slot_mapping, turned[:, -kv_heads:])
        slots[1].index_copy_(0, meta.slot_mapping, qkv[:, -kv_heads:])
        q = turned[:, :-kv_heads]
        place = torch.arange(len(q), device=q.device)
        row = torch.bucketize(place, meta.cu_seqlens_q[1:], right=True)
        seen = meta.seq_lens_k[row] - (meta.cu_seqlens_q[row + 1] - place) + 1
        pages = kv_layer[:, meta.block_table.long()[row]]  # [2, T, P, page, K, H]
        keys, values = pages.flatten(2, 3).transpose(2, 3).unbind(0)  # [T, K, P * page, H]
        hidden = torch.arange(keys.shape[2], device=q.device) >= seen.unsqueeze(1)
        mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, -math.inf)
        grouped = q.reshape(len(q), kv_heads, -1, q.shape[-1])
        out = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=mask.view(len(q), 1, 1, -1)
        )
        nothing_seen = (seen <= 0).view(-1, 1, 1, 1)
        return out.masked_fill(nothing_seen, 0.0).reshape(q.shape)
