"""Triton's interpreter, made to round as GPUs do; import this before any kernel.

`conftest.py` turns it on. As it comes, it cuts float32 down to bfloat16 and loses the carry of a
mantissa that rounds up in e4m3 (`_convert_float` of triton 3.9): torch converts instead.
"""

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the kernels of GPUs are interpreted by triton")

import triton.language as tl
from triton.runtime import interpreter

_ROUNDED: dict[Any, tuple[torch.dtype, Any]] = {
    tl.bfloat16: (torch.bfloat16, np.uint16),
    tl.float8e4nv: (torch.float8_e4m3fn, np.uint8),
}
_convert = interpreter._convert_float


def _convert_float(numbers: Any, source: Any, target: Any, rounding: Any) -> Any:
    if source != tl.float32 or target not in _ROUNDED:
        return _convert(numbers, source, target, rounding)
    dtype, bits = _ROUNDED[target]
    wide = torch.from_numpy(np.ascontiguousarray(numbers).view(np.float32))
    return wide.to(dtype).view(torch.uint8).numpy().view(bits).reshape(numbers.shape)


interpreter._convert_float = _convert_float
