"""The modules of flash-attn 2 and 3: they refuse what the real ones refuse, and compute by SDPA."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

PAGE = 256


def check(q: Tensor, keys: Tensor, values: Tensor, table: Tensor, page: int) -> None:
    """What both generations ask of a paged call."""
    assert q.dtype in (torch.float16, torch.bfloat16)
    assert q.dtype == keys.dtype == values.dtype
    assert q.stride(-1) == keys.stride(-1) == values.stride(-1) == table.stride(-1) == 1
    assert table.dtype is torch.int32
    assert keys.shape[1] % page == 0
    assert q.shape[-2] % keys.shape[2] == 0


def attend(q: Tensor, keys: Tensor, values: Tensor, pages: Tensor, length: int) -> Tensor:
    """The last len(q) of `length` positions, [queries, N, H]; zeros if there are none."""
    if not length:
        return torch.zeros_like(q)
    k = keys[pages.long()].flatten(0, 1)[:length].float().transpose(0, 1)
    v = values[pages.long()].flatten(0, 1)[:length].float().transpose(0, 1)
    seen = torch.ones(len(q), length).tril(length - len(q)).bool()
    grouped = q.float().transpose(0, 1)
    out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=seen, enable_gqa=True)
    return out.transpose(0, 1).to(q.dtype)


def _packed(
    q: Tensor, keys: Tensor, values: Tensor, borders: Tensor, lengths: Tensor, table: Tensor
) -> Tensor:
    assert borders.dtype == lengths.dtype == torch.int32
    assert borders[0] == 0
    assert borders[-1] == len(q)
    assert len(borders) == len(lengths) + 1 == len(table) + 1
    ends = borders.tolist()
    parts = [
        attend(q[ends[row] : ends[row + 1]], keys, values, table[row], int(length))
        for row, length in enumerate(lengths)
    ]
    return torch.cat(parts)


class Flash2(SimpleNamespace):
    """The module `flash_attn`."""

    __version__ = "2.8.3"

    @staticmethod
    def flash_attn_with_kvcache(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        cache_seqlens: Tensor,
        block_table: Tensor,
        causal: bool,
        num_splits: int,
    ) -> Tensor:
        check(q, k_cache, v_cache, block_table, PAGE)
        assert causal
        assert num_splits >= 0
        assert q.dim() == 4
        assert len(q) == len(cache_seqlens) == len(block_table)
        assert cache_seqlens.dtype is torch.int32
        rows = zip(q, block_table, cache_seqlens, strict=True)
        return torch.stack([attend(one, k_cache, v_cache, t, int(n)) for one, t, n in rows])

    @staticmethod
    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        causal: bool,
        block_table: Tensor,
    ) -> Tensor:
        check(q, k, v, block_table, PAGE)
        assert causal
        assert cu_seqlens_k.dtype is torch.int32
        lengths = cu_seqlens_k.diff().int()
        assert max_seqlen_q >= int(cu_seqlens_q.diff().max())
        assert int(lengths.max()) <= max_seqlen_k <= block_table.shape[1] * k.shape[1]
        return _packed(q, k, v, cu_seqlens_q, lengths, block_table)


class Flash3(SimpleNamespace):
    """The module `flash_attn_interface`."""

    @staticmethod
    def flash_attn_with_kvcache(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        cache_seqlens: Tensor,
        page_table: Tensor,
        cu_seqlens_q: Tensor,
        max_seqlen_q: int,
        causal: bool,
        num_splits: int,
    ) -> Tensor:
        check(q, k_cache, v_cache, page_table, 1)
        assert causal
        assert num_splits >= 0
        assert max_seqlen_q >= int(cu_seqlens_q.diff().max())
        return _packed(q, k_cache, v_cache, cu_seqlens_q, cache_seqlens, page_table)
