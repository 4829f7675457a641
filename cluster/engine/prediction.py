"""PredictionMatch: how much of a prediction an output repeated.

Owns the count that goes into a request's usage. It is a function of the two token sequences alone:
whether tokens were in fact computed ahead depends on the engine's load, and a bill must not. Knows
no model.

    prediction   a b c d e f g         output   a b x d e f ...
    repeated     a b . d e f .         a reader that loses its place finds it by two tokens
"""

from collections.abc import Sequence


class PredictionMatch:
    """Reads one output along one prediction."""

    def __init__(self, prediction: Sequence[int]) -> None:
        self._prediction = list(prediction)
        self._repeated = bytearray(len(self._prediction))
        self._after: dict[tuple[int, int], int] = {}
        for at in range(len(self._prediction) - 1, 0, -1):
            self._after[self._prediction[at - 1], self._prediction[at]] = at + 1
        self._next = 0
        self._last = -1
        self._last_counted = False

    @property
    def accepted(self) -> int:
        """Tokens of the prediction that the output repeated so far."""
        return sum(self._repeated)

    @property
    def rejected(self) -> int:
        """Tokens of the prediction that it did not."""
        return len(self._prediction) - self.accepted

    def push(self, token_id: int) -> None:
        """The output's next token."""
        at = self._next
        if at < len(self._prediction) and self._prediction[at] == token_id:
            self._repeated[at] = 1
            self._next, self._last_counted = at + 1, True
        elif (found := self._after.get((self._last, token_id))) is not None:
            self._repeated[found - 1] = 1
            if not self._last_counted:
                self._repeated[found - 2] = 1
            self._next, self._last_counted = found, True
        else:
            self._last_counted = False
        self._last = token_id
