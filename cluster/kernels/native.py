"""The door to the compiled extension: is it here, and can this CPU run it?

Owns the import of `cluster.kernels._native` (built by `cluster.kernels.build`). Knows no layers.
"""

import importlib
from typing import Any

import torch

_MISSING = "not built: install g++ and run python -m cluster.kernels.build"


def load() -> tuple[Any, str]:
    """(the extension's module, the instructions it will use) or (None, why not).

    torch is imported first: its OpenMP runtime is the one that both must share.
    """
    torch.get_num_threads()
    try:
        module: Any = importlib.import_module("cluster.kernels._native")
    except ImportError as error:
        missing = getattr(error, "name", None) == "cluster.kernels._native"
        return None, _MISSING if missing else f"cannot be loaded ({error}): build it again"
    variants = module.linear_variants()
    if not variants:
        return None, "this CPU lacks AVX2"
    return module, ", ".join(variants)
