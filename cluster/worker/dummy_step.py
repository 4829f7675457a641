"""Steps of nobody: one warms every kernel, one shows how large keys and values are."""

import torch
from torch import Tensor

from cluster.attention.backend import AttentionBackend, AttentionMetadata
from cluster.model.decoder import Decoder

SAMPLED_TOKENS = 256


def run_dummy(
    model: Decoder, backend: AttentionBackend, kv_cache: list[Tensor], num_tokens: int
) -> None:
    """One prefill of `num_tokens` whose keys and values all land in the dummy block.

    It shows what a step takes of the device; the dummy block is zero again afterwards.
    """
    device, block_size = kv_cache[0].device, kv_cache[0].shape[2]
    table = torch.zeros((1, -(-num_tokens // block_size)), dtype=torch.int32, device=device)
    ids = torch.zeros(num_tokens, dtype=torch.int64, device=device)
    step = _prefill(num_tokens, table, block_size)
    step.positions.clamp_(max=len(model.rotary.cos) - 1)  # a step may be larger than a request
    hidden = model(ids, kv_cache, backend.plan(step))
    model.compute_logits(hidden[-1:])
    for kv_layer in kv_cache:
        kv_layer[:, 0] = 0


def largest_kv(
    model: Decoder, backend: AttentionBackend, kv_cache: list[Tensor], num_ids: int
) -> list[Tensor]:
    """Per layer, and kv head, the largest key and the largest value [2, K] of a prompt of tokens
    from the whole vocabulary; the cache holds it, unrounded.

    Args:
        kv_cache: of `sample_blocks` blocks; overwritten.
        num_ids: ids that the prompt may be made of.
    """
    device, block_size = kv_cache[0].device, kv_cache[0].shape[2]
    num_tokens = min(SAMPLED_TOKENS, len(model.rotary.cos))
    pages = torch.arange(1, sample_blocks(block_size), dtype=torch.int32, device=device)
    ids = torch.arange(num_tokens, device=device) * num_ids // num_tokens
    step = _prefill(num_tokens, pages.unsqueeze(0), block_size)
    model(ids, kv_cache, backend.plan(step))
    return [kv_layer.abs().amax((1, 2, 4)) for kv_layer in kv_cache]


def sample_blocks(block_size: int) -> int:
    """Blocks that `largest_kv` wants, the dummy block included."""
    return 1 - (-SAMPLED_TOKENS // block_size)


def _prefill(num_tokens: int, table: Tensor, block_size: int) -> AttentionMetadata:
    """One request's first `num_tokens`."""
    device = table.device
    positions = torch.arange(num_tokens, device=device)
    pages = table[0, positions // block_size].long()
    return AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
        seq_lens_k=torch.tensor([num_tokens], dtype=torch.int32, device=device),
        block_table=table,
        positions=positions,
        slot_mapping=pages * block_size + positions % block_size,
        max_q=num_tokens,
        max_k=num_tokens,
        num_decode=int(num_tokens == 1),
    )
