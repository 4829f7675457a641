"""Compiles the Triton kernels for a Hopper GPU, which need not be there; prints each one's name.

A process of its own: kernels are either interpreted or compiled, from their import on.
"""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cluster.kernels import triton_argmax, triton_draw, triton_fp8, triton_layers

HOPPER = GPUTarget("cuda", 90, 32)
NORM = "x:*bf16 residual:*bf16 weight:*bf16 out:*bf16 x_stride:i32 residual_stride:i32 width:i32"
KERNELS: list[tuple[Any, str, dict[str, Any]]] = [
    (triton_layers._norm, f"{NORM} eps:fp32", {"ADD": True, "BLOCK": 8192}),
    (triton_layers._norm, f"{NORM} eps:fp32", {"ADD": False, "BLOCK": 8192}),
    (
        triton_layers._silu_and_mul,
        "gate_up:*bf16 out:*bf16 stride:i32 width:i32",
        {"BLOCK": triton_layers.PART},
    ),
    (
        triton_fp8._quantize,
        "x:*bf16 numbers:*fp8e4nv scales:*fp32 stride:i32 width:i32",
        {"LARGEST": 448.0, "SMALLEST": 1e-12, "BLOCK": 32768},
    ),
    (
        triton_draw._draw,
        "values:*fp32 ids:*i64 floors:*fp32 lse:*fp32 top_p:*fp32 min_p_log:*fp32 top_k:*i64 "
        "keys:*i64 tokens:*i64 covered:*i1 width:i32 unlimited:i32",
        {"BLOCK": 64},
    ),
    (
        triton_argmax._parts,
        "logits:*bf16 values:*fp32 places:*i32 healthy:*i32 stride:i32 limit:i32 parts:i32",
        {"PART": triton_argmax.PART},
    ),
    (
        triton_argmax._whole,
        "values:*fp32 places:*i32 healthy:*i32 value:*fp32 place:*i64 health:*i1 parts:i32",
        {"BLOCK": 64},
    ),
]


def main() -> None:
    for kernel, signature, constants in KERNELS:
        types = dict(part.split(":") for part in signature.split())
        source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
        compiled = triton.compile(source, target=HOPPER)
        print(kernel.__name__, len(compiled.asm["cubin"]))


if __name__ == "__main__":
    main()
