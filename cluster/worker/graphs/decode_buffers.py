"""DecodeBuffers: the inputs of recorded steps, at addresses that never change.

Owns the one set of buffers that graphs of all sizes share, each reading the first places of it, and
what stands in those that only pad. A step's inputs are copied in on the device, in its stream, so
nothing waits. Knows no model.

    decodes: 3 tokens in a graph of 4         drafts: rows of 3 and 1 tokens in a graph of 6

    token_ids, positions, slots  | a b c 0 |  | a a' a" b 0 0 |    padding is token 0, whose key
    seq_lens                     | 9 7 4 0 |  | 9 7 0 0 0 0 |      and value go to the dummy
    block_table                  | . . . 0 |  | . . 0 0 0 0 |      block; its row sees nothing
    cuts                        0 1 2 3 4     0 3 4 5 6 6 6        rows without tokens end drafts
"""

import torch
from torch import Tensor

from cluster.attention.backend import AttentionMetadata


class DecodeBuffers:
    """Inputs of up to `num_tokens` tokens."""

    def __init__(self, num_tokens: int, max_pages: int, device: torch.device) -> None:
        self._numbers = torch.zeros((3, num_tokens), dtype=torch.int64, device=device)
        self.token_ids, self.positions, self.slots = self._numbers.unbind(0)
        self.seq_lens = torch.zeros(num_tokens, dtype=torch.int32, device=device)
        self.block_table = torch.zeros((num_tokens, max_pages), dtype=torch.int32, device=device)
        self._places = torch.arange(num_tokens + 1, dtype=torch.int32, device=device)
        self.cuts = self._places.clone()

    def metadata(self, num_tokens: int, max_q: int, max_k: int) -> AttentionMetadata:
        """The first tokens, as a step of so many; rows will have at most `max_q` and see at most
        `max_k`."""
        decodes = max_q == 1
        return AttentionMetadata(
            cu_seqlens_q=(self._places if decodes else self.cuts)[: num_tokens + 1],
            seq_lens_k=self.seq_lens[:num_tokens],
            block_table=self.block_table[:num_tokens],
            positions=self.positions[:num_tokens],
            slot_mapping=self.slots[:num_tokens],
            max_q=max_q,
            max_k=max_k,
            num_decode=num_tokens if decodes else 0,
        )

    def fill(self, token_ids: Tensor, metadata: AttentionMetadata, num_tokens: int) -> None:
        """A step's rows, then padding up to `num_tokens`."""
        used, (rows, pages) = len(token_ids), metadata.block_table.shape
        self.token_ids[:used].copy_(token_ids)
        self.positions[:used].copy_(metadata.positions)
        self.slots[:used].copy_(metadata.slot_mapping)
        self._numbers[:, used:num_tokens].zero_()
        self.seq_lens[:rows].copy_(metadata.seq_lens_k)
        self.seq_lens[rows:num_tokens].zero_()
        self.block_table[:num_tokens].zero_()
        self.block_table[:rows, :pages].copy_(metadata.block_table)
        if metadata.max_q > 1:
            cuts = self.cuts[: num_tokens + 1]
            torch.add(self._places[: num_tokens + 1], used - rows, out=cuts).clamp_(max=num_tokens)
            cuts[: rows + 1].copy_(metadata.cu_seqlens_q)
