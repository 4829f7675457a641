"""Which numbers of tokens get a graph of their own; a step pads itself up to the next one.

Owns the choice: dense where a token more costs a share of the step, sparse where it costs little.
About twenty serve up to 256. Knows no torch.
"""

from collections.abc import Sequence

_USUAL = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)
_BEYOND = 64
"""Tokens between two sizes above the last usual one."""


def graph_sizes(asked: Sequence[int] | None, most: int) -> list[int]:
    """Ascending; `asked` as it is, else the usual ones up to `most`, which is the last."""
    if asked is not None:
        return sorted(set(asked))
    beyond = range(_USUAL[-1] + _BEYOND, most, _BEYOND)
    return [*(size for size in (*_USUAL, *beyond) if size < most), most]
