"""How much one program of a kernel takes on: tiles, warps, pipeline stages, splits.

Owns the figures, by capability and number format. Pure arithmetic. None was tuned on a device:
they follow from shared memory (a stage holds one block of keys and one of values) and from rules
that published kernels keep to.
"""

from typing import NamedTuple

from cluster.attention.backend import HeadShape

SHORT_LINES = 64
"""Lines (queries x query heads of a kv head) up to which rows are served by split keys."""
MIN_SPLIT_BLOCKS = 2
"""Blocks of keys that are worth a program of their own."""
WAVES = 4
"""Splits a multiprocessor gets on average; the last wave is seldom full."""
MAX_SPLITS = 256
"""More cost more to combine than they save."""
FIXED_SPLIT = 1024
"""Tokens of a split where bits must not depend on the rest of the batch."""
COMBINED_AT_ONCE = 32
"""Splits whose sums one program reads in one go."""
ROTATED_HEADS = 8
ROTATE_WARPS = 2


class KernelSizes(NamedTuple):
    """One kernel's tile: lines of queries, keys of a block; and how it is run."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def split_sizes(shape: HeadShape, capability: tuple[int, int], max_q: int) -> KernelSizes:
    """For rows of at most `max_q` queries; few shapes, as each is compiled once."""
    lines = max(16, power_of_two(shape.group))
    if max_q > 1:
        lines = max(lines, power_of_two(SHORT_LINES))
    return KernelSizes(lines, _block_n(shape), 4, _stages(capability))


def prefill_sizes(shape: HeadShape, capability: tuple[int, int]) -> KernelSizes:
    """For chunks of prompts."""
    narrow = shape.dtype.itemsize * shape.head_dim > 256
    return KernelSizes(
        64 if narrow else 128, _block_n(shape), 4 if narrow else 8, _stages(capability)
    )


def power_of_two(number: int) -> int:
    """The smallest one that is not less."""
    return 1 << (number - 1).bit_length()


def _block_n(shape: HeadShape) -> int:
    return 32 if shape.dtype.itemsize * shape.head_dim > 256 else 64


def _stages(capability: tuple[int, int]) -> int:
    """Three blocks in flight need more shared memory than 8.6, 8.9 and 12.x have (99 KiB)."""
    return 3 if capability in ((8, 0), (8, 7)) or capability[0] in (9, 10) else 2
