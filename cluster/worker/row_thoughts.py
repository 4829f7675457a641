"""RowThoughts: which rows are among their thoughts, and what they are forced to say next.

Owns a `Thinking` for every row whose think block is open or being closed; a row in its answer costs
nothing. Every rank has its own and finds the same, as rows and their tokens are the same. Knows no
logits.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cluster.batch import StartedRow
from cluster.thinking import Thinking


class RowThoughts:
    """Follows the rows of a batch."""

    def __init__(self) -> None:
        self._rows: dict[int, Thinking] = {}

    def start(self, started: StartedRow) -> None:
        """A request enters a row, perhaps with some of its output known already."""
        self._rows.pop(started.row, None)
        rule = started.params.thinking
        if rule is None or not rule.closing:
            return
        thinking = Thinking(rule)
        for token_id in started.token_ids[started.num_prompt_tokens :]:
            thinking.push(token_id)
        if not thinking.answering:
            self._rows[started.row] = thinking

    def record(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
        """What rows drew."""
        if not self._rows:
            return
        for row, drawn in zip(rows, token_ids, strict=True):
            thinking = self._rows.get(row)
            if thinking is None:
                continue
            for token_id in drawn:
                thinking.push(token_id)
            if thinking.answering:
                del self._rows[row]

    def forced(
        self, rows: Sequence[int], drafts: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.int64] | None:
        """Per sampling position (a row's next token, then those behind each of its drafts) the id
        that must be drawn there, -1 for any; None where nothing is forced."""
        if not self._rows:
            return None
        forced: list[int] = []
        for row, draft in zip(rows, drafts, strict=True):
            thinking = self._rows.get(row)
            if thinking is None:
                forced += [-1] * (1 + len(draft))
            elif draft:
                ahead = thinking.ahead(draft)
                forced += [-1 if token.forced is None else token.forced for token in ahead]
            else:
                forced.append(-1 if thinking.forced is None else thinking.forced)
        return np.array(forced) if max(forced, default=-1) >= 0 else None
