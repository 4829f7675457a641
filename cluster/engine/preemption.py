"""Whom to preempt when blocks run out.

Owns the choice. A preempted request loses its blocks and is computed again later, so what counts
is how many tokens that costs for every block it gives back now:

    price = tokens to compute again / blocks given back

Blocks shared with others are neither given back nor computed again. Between requests that decode
the price hardly differs (it is about the block size), and then the youngest goes: it has waited
least, it has been shown least of its answer, and whoever came first is served first. A prompt
that is being computed in chunks has been given all its blocks at once and little of it is done:
it gives back many for little, whatever its age. So the youngest goes, unless another costs less
than half of what the youngest does. The oldest is never a candidate while there is another, hence
it always goes on, and with it everybody in turn.

Other orders were simulated (least to compute again, most blocks, most tokens left to draw): none
recomputed less in every pool size. Copying the blocks out instead is weighed in docs/adr/0005.
"""

from bisect import bisect_left
from collections.abc import Sequence

from cluster.engine.request import Request

_CHEAPER = 0.5


def victim(candidates: Sequence[Request], block_size: int) -> Request:
    """The request to preempt.

    Args:
        candidates: in order of admission, at least one; those of the running whose share of this
            step is not planned yet, without the oldest unless it is alone.
    """
    youngest = candidates[-1]
    cheapest = min(reversed(candidates), key=lambda request: price(request, block_size))
    if price(cheapest, block_size) < _CHEAPER * price(youngest, block_size):
        return cheapest
    return youngest


def price(request: Request, block_size: int) -> float:
    """Tokens to be computed again per block given back; infinite when none would be."""
    blocks = request.table.blocks
    # what is shared is a prefix, so all shared blocks lie before all others
    shared = bisect_left(blocks, True, key=lambda block: block.ref_count == 1)
    given = len(blocks) - shared
    if not given:
        return float("inf")
    return max(0, request.num_computed - shared * block_size) / given
