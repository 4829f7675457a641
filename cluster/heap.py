"""The C library's heap: what one step frees is kept for the next.

Owns two settings of glibc. By default the memory of a large tensor goes back to the kernel when it
is freed and comes back page by page, zeroed: a prefill of 2,048 tokens of a 126 M model faulted
130,000 to 420,000 pages in. Knows no tensors.
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Names of mallopt's parameters, from malloc.h."""
MOST_KEPT = (1 << 31) - 1
"""Free bytes at the heap's end above which they are given back."""


def keep_freed_memory() -> bool:
    """For this process, from now on; whether its C library can."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, MOST_KEPT))
