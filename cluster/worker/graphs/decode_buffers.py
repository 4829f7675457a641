"""DecodeBuffers: the inputs of recorded decode steps, at addresses that never change.

Owns the one set of buffers that graphs of all sizes share, each reading the first rows of it, and
what stands in rows that only pad. A step's inputs are copied in on the device, in its stream, so
nothing waits. Knows no model.

    token_ids, positions, slots   | a b c 0 |        3 rows in a graph of 4:
    seq_lens                      | 9 7 4 0 |        a padding row is token 0 with nothing to see,
    block_table                   | . . . 0 |        whose key and value go to the dummy block
"""

import torch
from torch import Tensor

from cluster.attention.backend import AttentionMetadata


class DecodeBuffers:
    """Inputs of up to `num_rows` rows, one query each."""

    def __init__(self, num_rows: int, max_pages: int, device: torch.device) -> None:
        self._numbers = torch.zeros((3, num_rows), dtype=torch.int64, device=device)
        self.token_ids, self.positions, self.slots = self._numbers.unbind(0)
        self.seq_lens = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self.block_table = torch.zeros((num_rows, max_pages), dtype=torch.int32, device=device)
        self._borders = torch.arange(num_rows + 1, dtype=torch.int32, device=device)

    def metadata(self, num_rows: int, max_k: int) -> AttentionMetadata:
        """The first rows, as a step of so many; rows will see `max_k` tokens at most."""
        return AttentionMetadata(
            cu_seqlens_q=self._borders[: num_rows + 1],
            seq_lens_k=self.seq_lens[:num_rows],
            block_table=self.block_table[:num_rows],
            positions=self.positions[:num_rows],
            slot_mapping=self.slots[:num_rows],
            max_q=1,
            max_k=max_k,
            num_decode=num_rows,
        )

    def fill(self, token_ids: Tensor, metadata: AttentionMetadata, num_rows: int) -> None:
        """A step's rows, then padding up to `num_rows`."""
        used, pages = metadata.block_table.shape
        self.token_ids[:used].copy_(token_ids)
        self.positions[:used].copy_(metadata.positions)
        self.slots[:used].copy_(metadata.slot_mapping)
        self.seq_lens[:used].copy_(metadata.seq_lens_k)
        self.block_table[:num_rows].zero_()
        self.block_table[:used, :pages].copy_(metadata.block_table)
        if used < num_rows:
            self._numbers[:, used:num_rows].zero_()
            self.seq_lens[used:num_rows].zero_()
