"""Which algorithm sums how many bytes between the GPUs of one host: one table, and nothing else.

Owns the thresholds and their sources. Knows no torch and no memory.

    one shot    every rank reads all others' numbers                    least latency, most traffic
    two shot    every rank sums a share and writes it to all others     less traffic, one wait more
    multimem    the same, but the switch adds and spreads (NVSwitch)    least traffic
    ordered     every rank reads all and adds as a tree in float32      the same bits everywhere
    library     NCCL: what bandwidth alone decides, and all else

One shot ends where published tables leave it: 512 KiB at 2 and 4 ranks and 256 KiB at 8 for
hand-written kernels (vllm-project/vllm#24111), where multimem at 4 and 8 ranks takes over sooner.
"""

from typing import Literal, NamedTuple

Algorithm = Literal["one_shot", "two_shot", "multimem", "ordered", "library"]

KIB, MIB = 1 << 10, 1 << 20
BUFFER_BYTES = 32 * MIB
"""Of every rank's shared buffer; larger sums are left to the library."""
ALIGNMENT = 16
"""Sizes and addresses are multiples of this, or the library sums."""


class Thresholds(NamedTuple):
    """Of one number of ranks."""

    one_shot: int
    """Bytes up to which one shot is taken."""
    one_shot_beside_multimem: int
    """The same where the switch adds."""
    multimem: bool
    """Whether it pays to let the switch add."""


TABLE = {
    2: Thresholds(512 * KIB, 512 * KIB, multimem=False),
    4: Thresholds(512 * KIB, 256 * KIB, multimem=True),
    8: Thresholds(256 * KIB, 64 * KIB, multimem=True),
}
"""Other numbers of ranks have no kernels of their own in torch."""


def choose(ranks: int, num_bytes: int, multicast: bool, ordered: bool) -> Algorithm:
    """The algorithm for a sum of `num_bytes`, a multiple of ALIGNMENT.

    Args:
        multicast: whether the switch between the GPUs can add.
        ordered: bits count: one algorithm for all sizes, however large.
    """
    if ranks not in TABLE or num_bytes % ALIGNMENT:
        return "library"
    if ordered:
        return "ordered"
    if num_bytes > BUFFER_BYTES:
        return "library"
    thresholds = TABLE[ranks]
    if not (multicast and thresholds.multimem):
        return "one_shot" if num_bytes <= thresholds.one_shot else "two_shot"
    return "one_shot" if num_bytes <= thresholds.one_shot_beside_multimem else "multimem"
