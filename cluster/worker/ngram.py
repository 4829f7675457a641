"""NgramProposer: guesses that a text goes on as it went on before.

Owns, per row, where each two and each four tokens last stood in the request's own prompt, output
and prediction, and the cursor of the copy that is being followed. Knows no model, no costs, and
not whether its guesses are computed; it follows them either way, so that the share of good ones is
known without computing any.

    tokens   [ prediction | prompt, output ....... a b ]        the last tokens are a b
                     ... a b c d ...                            they stood here before
                             ^ cursor: the guess is c, then d

The longest match goes first: four tokens, then two; among equals the latest, the prediction before
the prompt. A hit moves the cursor on and needs no look-up. The tables are direct-mapped and of
fixed size: a newer entry replaces an older one, and what is found is compared before it is used.
"""

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cluster.batch import StartedRow
from cluster.worker.speculative import Forecast

LONGEST_MATCH = 8
"""How far back a match is measured."""
_SLOTS = 1 << 13
_MASK = _SLOTS - 1
_A, _B, _C, _D = 0x2C1B3C6D, 0x297A2D39, 0x1B873593, 0x19D699A5
_SHIFT = 9


class NgramProposer:
    """One history per row; microseconds per row and step."""

    follows_unasked = True

    def __init__(self, num_rows: int, max_draft: int) -> None:
        self._rows: list[_History | None] = [None] * num_rows
        self._max_draft = max_draft

    def start(self, started: StartedRow) -> None:
        """A request enters a row with all its known tokens, and perhaps a prediction."""
        self._rows[started.row] = _History(started.token_ids, started.prediction_token_ids)

    def release(self, row: int) -> None:
        self._rows[row] = None

    def observe(self, row: int, token_ids: Sequence[int]) -> Forecast:
        """What was drawn; how well it was foreseen, and how much is foreseen now."""
        history = self._rows[row]
        if history is None:
            return Forecast(0, 0, 0, 0)
        followed = history.cursor >= 0
        hits = history.extend(token_ids)
        compared = min(len(token_ids), hits + 1) if followed else 0
        available = history.available(self._max_draft)
        return Forecast(available, history.matched, hits, compared)

    def draft(self, rows: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
        """Up to `counts[i]` tokens that may follow what `rows[i]` knows."""
        drafts = []
        for row, count in zip(rows, counts, strict=True):
            history = self._rows[row]
            drafts.append(history.ahead(count) if history is not None and count else [])
        return drafts


class _History:
    """One row's tokens, where they stood before, and the copy it follows."""

    __slots__ = ("_first", "_fours", "_tokens", "_twos", "cursor", "matched")

    def __init__(self, token_ids: Sequence[int], prediction: Sequence[int]) -> None:
        self._tokens = array("i", prediction)
        self._first = len(prediction)
        self._tokens.extend(token_ids)
        self._twos = array("i", bytes(4 * _SLOTS))
        self._fours = array("i", bytes(4 * _SLOTS))
        self.cursor = -1
        self.matched = 0
        self._enter(self._first, len(self._tokens))
        self._enter(0, self._first)

    def _enter(self, start: int, end: int) -> None:
        """All n-grams that lie in a span and have a token behind them there."""
        known = np.frombuffer(self._tokens, np.int32)[start:end].astype(np.uint64)
        twos, fours = _slots(known)
        np.frombuffer(self._twos, np.int32)[twos] = np.arange(start + 2, start + 2 + len(twos))
        np.frombuffer(self._fours, np.int32)[fours] = np.arange(start + 4, start + 4 + len(fours))

    def extend(self, token_ids: Sequence[int]) -> int:
        """Take drawn tokens in; how many of the first of them the cursor foresaw."""
        tokens, twos, fours = self._tokens, self._twos, self._fours
        cursor, hits = self.cursor, 0
        b, c, d = _last_three(tokens, self._first)
        a = tokens[-4] if len(tokens) - self._first > 3 else -1
        for token in token_ids:
            end = len(tokens)
            two = c * _C + d * _D
            twos[two >> _SHIFT & _MASK] = end
            fours[a * _A + b * _B + two >> _SHIFT & _MASK] = end
            if cursor >= 0:
                if tokens[cursor] == token:
                    hits += 1
                    cursor += 1
                    if cursor == self._first:
                        cursor = -1
                else:
                    cursor = -1
            tokens.append(token)
            a, b, c, d = b, c, d, token
        self.cursor = cursor
        if cursor >= 0:
            self.matched += len(token_ids)
        else:
            self._look_up(a, b, c, d)
        return hits

    def _look_up(self, a: int, b: int, c: int, d: int) -> None:
        two = c * _C + d * _D
        self.matched = 0
        for found, least in (
            (self._fours[a * _A + b * _B + two >> _SHIFT & _MASK], 4),
            (self._twos[two >> _SHIFT & _MASK], 2),
        ):
            if found:
                length = self._common(found)
                if length >= least:
                    self.cursor, self.matched = found, length
                    return

    def _common(self, found: int) -> int:
        """How many tokens before `found` are also the last known ones."""
        tokens, end = self._tokens, len(self._tokens)
        first = self._first if found > self._first else 0
        reach = min(LONGEST_MATCH, found - first, end - self._first)
        length = 0
        while length < reach and tokens[found - 1 - length] == tokens[end - 1 - length]:
            length += 1
        return length

    def available(self, most: int) -> int:
        """How many tokens the cursor foresees; a copy of the end repeats itself for ever."""
        if self.cursor < 0:
            return 0
        return min(most, self._first - self.cursor) if self.cursor < self._first else most

    def ahead(self, count: int) -> list[int]:
        """The next `count` tokens after the cursor."""
        count = self.available(count)
        if not count:
            return []
        draft = self._tokens[self.cursor : self.cursor + count].tolist()
        period = len(draft)
        while len(draft) < count:
            draft.append(draft[len(draft) - period])
        return draft


def _last_three(tokens: "array[int]", first: int) -> tuple[int, int, int]:
    known = len(tokens) - first
    return (
        tokens[-3] if known > 2 else -1,
        tokens[-2] if known > 1 else -1,
        tokens[-1] if known else -1,
    )


def _slots(
    known: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Table slots of all pairs and all fours of a span, in order, without the last of each."""
    pairs = known[:-1] * np.uint64(_C) + known[1:] * np.uint64(_D)
    lead = known[:-1] * np.uint64(_A) + known[1:] * np.uint64(_B)
    fours = lead[:-2] + pairs[2:]
    shift, mask = np.uint64(_SHIFT), np.uint64(_MASK)
    return (pairs[:-1] >> shift) & mask, (fours[:-1] >> shift) & mask
