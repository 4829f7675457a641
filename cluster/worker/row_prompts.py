"""RowPrompts: which tokens of a step are judged by the prompt that they are part of.

Owns the rows whose requests want to know what the model thought of their prompts. The first token
of a prompt follows nothing, and what follows the last one is drawn:

    prompt   [ a b c d ]     a chunk  [ a b c ]   then  [ d ]
    told     of b, c, d      judged   b c d, behind a b c; nothing behind d

Every rank has its own and finds the same. Knows no logits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.batch import ScheduledRow, StartedRow

Ints = npt.NDArray[np.int64]

NOTHING: Ints = np.empty(0, np.int64)


class Judged(NamedTuple):
    """J tokens of prompts, row after row in the frame's order."""

    behind: Ints
    """[J]: behind which of the step's tokens each of them follows."""
    token_ids: Ints
    """[J]"""
    counts: Ints
    """[J]: how many of the likeliest ids to name beside it."""
    rows: list[int]
    """[J]"""


class RowPrompts:
    """Follows the rows of a batch."""

    def __init__(self) -> None:
        self._asking: dict[int, tuple[int, int]] = {}  # row -> (prompt tokens, ids to name)

    def start(self, started: StartedRow) -> None:
        """A request enters a row."""
        named = started.params.prompt_logprobs
        if named is not None:
            self._asking[started.row] = started.num_prompt_tokens, named

    def release(self, row: int) -> None:
        """The row's request left."""
        self._asking.pop(row, None)

    def judged(
        self, scheduled: Sequence[ScheduledRow], first: Ints, known: npt.NDArray[np.int32]
    ) -> Judged | None:
        """What a step judges; None: nothing.

        Args:
            first: where each of `scheduled` begins among the step's tokens.
            known: the token ids of all rows.
        """
        if not self._asking:
            return None
        found = Judged(NOTHING, NOTHING, NOTHING, [])
        for share, begin in zip(scheduled, first.tolist(), strict=True):
            num_prompt, named = self._asking.get(share.row, (0, 0))
            start = share.num_computed
            count = min(share.num_tokens, num_prompt - 1 - start)
            if count > 0:
                followed = known[share.row, start + 1 : start + 1 + count]
                found = Judged(
                    np.concatenate((found.behind, begin + np.arange(count))),
                    np.concatenate((found.token_ids, followed)),
                    np.concatenate((found.counts, np.full(count, named))),
                    found.rows + [share.row] * count,
                )
        return found if found.rows else None
