"""Compiles what the Triton backend launches for the 32B, for GPUs that need not be there.

Prints a line a kernel: capability, name, bytes of shared memory. A process of its own: kernels are
either interpreted or compiled, from their import on.
"""

from functools import partialmethod
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from cluster.attention.backend import FP8, HeadShape
from cluster.attention.gpu_selection import FP8_CAPABILITY
from cluster.attention.triton.attention import TritonAttention
from tests.cluster.attention.textbook import Case, metadata, unturned

STEPS = [[(5000, 1), (70, 1)], [(5000, 9), (70, 1)], [(70, 1), (5000, 40)]]
"""Decodes; drafts to be judged; a decode and a chunk of a prompt."""
PAGES = {(8, 0): 64, (9, 0): 16}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Compiler:
    """Stands where launches go, and compiles each kernel as the launch would."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
        self.seen: set[str] = set()

    def __call__(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(kernel.params):
            value = given[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
                continue
            signature[parameter.name] = triton.runtime.jit.mangle_type(value)
            aligned = isinstance(value, torch.Tensor) or (
                isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize
            )
            if aligned:
                attributes[place,] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constants, attributes)
        key = f"{kernel.__name__} {constants}"
        if key not in self.seen:
            self.seen.add(key)
            compiled = triton.compile(source, target=self.target, options=options)
            assert compiled.asm["cubin"]
            print(self.target.arch, kernel.__name__, compiled.metadata.shared)


def main() -> None:
    for capability, page in PAGES.items():
        with pytest.MonkeyPatch.context() as patch:
            compiler = Compiler(capability)
            patch.setattr(JITFunction, "run", partialmethod(compiler))
            launch_all(capability, page, torch.bfloat16)
            if capability >= FP8_CAPABILITY:
                compiler.seen.clear()
                launch_all(capability, page, FP8)


def launch_all(capability: tuple[int, int], page: int, kept: torch.dtype) -> None:
    """The heads of one of eight ranks: what ranks have more of is no constant of a kernel."""
    shape = HeadShape(5, 1, 128, torch.bfloat16)
    backend = TritonAttention(page, shape, 256, capability, 132, deterministic=False)
    for requests in STEPS:
        case = Case(requests, page, 5, 1, 128)
        meta = metadata(case, list(range(1, case.num_blocks + 1)))
        layer = torch.zeros(2, 2, page, 1, 128, dtype=kept)
        qkv = torch.zeros(len(meta.positions), 7, 128, dtype=torch.bfloat16)
        backend.plan(meta).attend(layer, qkv, unturned(128))


if __name__ == "__main__":
    main()
