"""A step of nobody: it measures a step's memory and warms every kernel."""

import torch
from torch import Tensor

from cluster.attention.backend import AttentionBackend, AttentionMetadata
from cluster.model.decoder import Decoder


def run_dummy(
    model: Decoder, backend: AttentionBackend, kv_cache: list[Tensor], num_tokens: int
) -> None:
    """One prefill of `num_tokens` whose keys and values all land in the dummy block.

    The dummy block is zero again afterwards.
    """
    device = kv_cache[0].device
    block_size = kv_cache[0].shape[2]
    positions = torch.arange(num_tokens, device=device)
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
        seq_lens_k=torch.tensor([num_tokens], dtype=torch.int32, device=device),
        block_table=torch.zeros(
            (1, -(-num_tokens // block_size)), dtype=torch.int32, device=device
        ),
        positions=positions,
        slot_mapping=positions % block_size,
        max_q=num_tokens,
        max_k=num_tokens,
        num_decode=int(num_tokens == 1),
    )
    hidden = model(torch.zeros_like(positions), kv_cache, backend.plan(metadata))
    model.compute_logits(hidden[-1:])
    for kv_layer in kv_cache:
        kv_layer[:, 0] = 0
