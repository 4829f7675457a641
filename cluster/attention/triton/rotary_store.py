"""The kernel that turns a step's queries and keys and stores its keys and values.

It reads and writes `qkv` once, where separate kernels would thrice. Knows no attention.
"""

import triton
import triton.language as tl
from torch import Tensor

from cluster.attention.backend import AttentionMetadata, HeadShape, RotaryTable
from cluster.attention.triton.sizes import ROTATE_WARPS, ROTATED_HEADS, power_of_two


def rotary_store(
    metadata: AttentionMetadata,
    shape: HeadShape,
    kv_layer: Tensor,
    qkv: Tensor,
    rotary: RotaryTable,
) -> None:
    """Turn the queries of `qkv` [T, N + 2K, H] in place; its keys, turned, and values to slots."""
    groups = -(-qkv.shape[1] // ROTATED_HEADS)
    rotary_store_kernel[(len(qkv), groups)](
        qkv,
        kv_layer,
        metadata.positions,
        metadata.slot_mapping,
        rotary.cos,
        rotary.sin,
        kv_layer.stride(0),
        shape.num_heads,
        shape.num_kv_heads,
        HEAD=shape.head_dim,
        HALF_P2=power_of_two(shape.head_dim // 2),
        HEADS=ROTATED_HEADS,
        num_warps=ROTATE_WARPS,
        enable_fp_fusion=True,
    )


@triton.jit
def narrowed(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """As `backend.narrowed`: what e4m3 cannot hold becomes its largest number."""
    if dtype == tl.float8e4nv:
        x = x.to(tl.float32)
        x = tl.where(x > 448.0, 448.0, tl.where(x < -448.0, -448.0, x))
    return x.to(dtype)


@triton.jit(do_not_specialize=["num_heads", "num_kv_heads"])
def rotary_store_kernel(
    qkv: tl.tensor,  # [T, N + 2K, H]; the queries in it are turned in place
    kv_layer: tl.tensor,  # [2, slots, K, H]
    positions: tl.tensor,
    slot_mapping: tl.tensor,
    cos: tl.tensor,  # [positions, H/2]
    sin: tl.tensor,
    side_stride: tl.tensor,  # from a key to its value
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    HEAD: tl.constexpr,
    HALF_P2: tl.constexpr,
    HEADS: tl.constexpr,
) -> None:
    """Program (token, group of HEADS heads)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dim = tl.arange(0, HALF_P2)
    half = HEAD // 2
    inside = (head < num_heads + 2 * num_kv_heads)[:, None] & (dim < half)[None, :]
    source = (token * (num_heads + 2 * num_kv_heads) + head)[:, None] * HEAD + dim[None, :]
    first = tl.load(qkv + source, mask=inside, other=0.0)
    second = tl.load(qkv + source + half, mask=inside, other=0.0)

    angle = tl.load(positions + token) * half + dim
    c = tl.load(cos + angle, mask=dim < half, other=1.0)[None, :]
    s = tl.load(sin + angle, mask=dim < half, other=0.0)[None, :]
    x, y = first.to(tl.float32), second.to(tl.float32)
    is_value = (head >= num_heads + num_kv_heads)[:, None]
    first = tl.where(is_value, first, (x * c - y * s).to(first.dtype))
    second = tl.where(is_value, second, (y * c + x * s).to(second.dtype))

    is_query = (head < num_heads)[:, None]
    tl.store(qkv + source, first, mask=inside & is_query)
    tl.store(qkv + source + half, second, mask=inside & is_query)
    slot = tl.load(slot_mapping + token)
    side = (head >= num_heads + num_kv_heads).to(tl.int64)
    kv_head = head - num_heads - side * num_kv_heads
    target = side * side_stride + (slot * num_kv_heads + kv_head) * HEAD
    target = target[:, None] + dim[None, :]
    kept = kv_layer.dtype.element_ty
    tl.store(kv_layer + target, narrowed(first, kept), mask=inside & ~is_query)
    tl.store(kv_layer + target + half, narrowed(second, kept), mask=inside & ~is_query)
