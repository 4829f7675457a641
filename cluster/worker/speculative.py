"""Speculator: which tokens are worth computing ahead of each row, and whether any are.

Owns the rows' measured acceptance and the choice of draft lengths. Refuses to know how guesses are
made (a Proposer's matter) and how they are judged (`rejection`): a draft changes how soon a token
comes, never which.

A step of B rows and m drafts brings B + (expected hits) tokens and costs what a step of B + m
positions costs. Draft position j of a row that is foreseen with probability p hits with p^j; the
positions of all rows compete, the likeliest first, and as many are taken as make tokens per second
highest. So nothing is drafted where a wider step costs more than it may bring: on large batches,
and on text that does not repeat itself.

    row     foreseen   p      p^j                    taken, if a position costs 0.5 of a token
    0       c d e f    0.9    0.90 0.81 0.73 0.66    c d e f
    1       x y        0.6    0.60 0.36              x
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cluster.batch import SchedulerOutput, StartedRow
from cluster.worker.step_cost import StepCost

_GAIN = 1.05
"""Drafts must promise so much more tokens per second."""
_KEEP = 0.9
"""What a row's older hits count for with every new look."""
_PRIOR_WEIGHT = 2.0
_CLASS_KEEP, _CLASS_WEIGHT = 0.995, 8.0
_FIRST_GUESS = (0.3, 0.3, 0.4, 0.5, 0.65, 0.7, 0.75, 0.8, 0.85)
"""Before anything was measured: the probability of a hit by how many tokens match."""
_TRY_AGAIN = 128
"""Steps after which a proposer that is judged only by its drafts is asked again."""


class Forecast(NamedTuple):
    """What a proposer knows of a row after its newest tokens."""

    available: int
    """Tokens it foresees now."""
    evidence: int
    """How many tokens it bases that on; 0 where that means nothing."""
    hits: int
    """Of the newest tokens, how many it had foreseen ..."""
    compared: int
    """... of how many it had an opinion on."""


class Proposer(Protocol):
    """Guesses how rows go on. Runs on rank 0 alone; its guesses travel in the next frame."""

    @property
    def follows_unasked(self) -> bool:
        """Whether its forecasts count hits and misses of tokens that were not drafted too."""

    def start(self, started: StartedRow, /) -> None:
        """A request enters a row, with all its known tokens."""

    def release(self, row: int, /) -> None:
        """The row's request left."""

    def observe(self, row: int, token_ids: Sequence[int], /) -> Forecast:
        """The row's newest tokens."""

    def draft(self, rows: Sequence[int], counts: Sequence[int], /) -> list[list[int]]:
        """At most `counts[i]` tokens that may follow in `rows[i]`."""


class Speculator:
    """Asks a proposer for as many drafts as pay."""

    def __init__(
        self,
        proposer: Proposer,
        num_rows: int,
        max_draft: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._proposer = proposer
        self._max_draft = max_draft
        self._clock = clock
        self._hits = [0.0] * num_rows
        self._seen = [0.0] * num_rows
        self._evidence = [0] * num_rows
        self._class_hits = [p * _CLASS_WEIGHT for p in _FIRST_GUESS]
        self._class_seen = [_CLASS_WEIGHT] * len(_FIRST_GUESS)
        self._draft_seconds = 0.0
        self._idle_steps = 0
        self._threshold: dict[int, float] = {}
        self._version = -1
        self.cost = StepCost()

    def apply(self, frame: SchedulerOutput) -> None:
        """Rows that left, then rows that came."""
        for row in frame.released:
            self._proposer.release(row)
        for started in frame.started:
            row = started.row
            self._hits[row] = self._seen[row] = 0.0
            self._evidence[row] = 0
            self._proposer.start(started)

    def propose(self, rows: Sequence[int], drawn: Sequence[Sequence[int]]) -> list[list[int]]:
        """Drafts for the next step of these rows, aligned with them; [] for none.

        Args:
            drawn: what the step that just ended gave each row.
        """
        at: list[int] = []
        available: list[int] = []
        chances: list[float] = []
        least = self._least_chance(len(rows))
        self._idle_steps += 1
        for index, (row, token_ids) in enumerate(zip(rows, drawn, strict=True)):
            forecast = self._proposer.observe(row, token_ids)
            if forecast.compared:
                self._learn(row, forecast)
            self._evidence[row] = min(forecast.evidence, len(_FIRST_GUESS) - 1)
            if forecast.available:
                chance = self._chance(row)
                if chance > least:
                    at.append(index)
                    available.append(forecast.available)
                    chances.append(chance)
        drafts: list[list[int]] = [[] for _ in rows]
        if at:
            counts = self._choose(len(rows), available, chances)
            self._draft(rows, at, counts, drafts)
        return drafts

    def _draft(
        self, rows: Sequence[int], at: list[int], counts: list[int], drafts: list[list[int]]
    ) -> None:
        asked = [(index, count) for index, count in zip(at, counts, strict=True) if count]
        if not asked:
            return
        self._idle_steps = 0
        begun = self._clock()
        made = self._proposer.draft([rows[i] for i, _ in asked], [count for _, count in asked])
        per_token = (self._clock() - begun) / max(count for _, count in asked)
        self._draft_seconds += 0.1 * (per_token - self._draft_seconds)
        for (index, _), draft in zip(asked, made, strict=True):
            drafts[index] = draft

    def _learn(self, row: int, forecast: Forecast) -> None:
        self._hits[row] = self._hits[row] * _KEEP + forecast.hits
        self._seen[row] = self._seen[row] * _KEEP + forecast.compared
        kind = self._evidence[row]
        self._class_hits[kind] = self._class_hits[kind] * _CLASS_KEEP + forecast.hits
        self._class_seen[kind] = self._class_seen[kind] * _CLASS_KEEP + forecast.compared

    def _chance(self, row: int) -> float:
        """That the row's next token is the foreseen one: its own past, and its likes'."""
        kind = self._evidence[row]
        prior = self._class_hits[kind] / self._class_seen[kind]
        chance = (self._hits[row] + _PRIOR_WEIGHT * prior) / (self._seen[row] + _PRIOR_WEIGHT)
        if not self._proposer.follows_unasked and self._idle_steps >= _TRY_AGAIN:
            return max(chance, _FIRST_GUESS[-1])
        return min(chance, 0.99)

    def _least_chance(self, num_rows: int) -> float:
        """A row foreseen with less cannot make a step of so many rows worth widening."""
        if self.cost.version != self._version:
            self._threshold.clear()
            self._version = self.cost.version
        least = self._threshold.get(num_rows)
        if least is None:
            least = self._threshold[num_rows] = self._cheapest_position(num_rows)
        return least

    def _cheapest_position(self, num_rows: int) -> float:
        if not self.cost.known or not num_rows:
            return 1.0
        drafts = np.arange(1, num_rows * self._max_draft + 1)
        wider = self.cost.seconds(num_rows + drafts)
        plain = float(self.cost.seconds(np.array([num_rows]))[0])
        return float(((wider / plain * _GAIN - 1) * num_rows / drafts).min())

    def _choose(self, num_rows: int, available: list[int], chances: list[float]) -> list[int]:
        """How many drafts of each row make the step's tokens per second highest."""
        depth = np.arange(1, self._max_draft + 1)
        odds = np.array(chances)[:, None] ** depth
        odds[depth > np.array(available)[:, None]] = 0.0
        order = np.argsort(-odds, axis=None, kind="stable")[: int(np.count_nonzero(odds))]
        owner, column = np.divmod(order, self._max_draft)
        tokens = num_rows + np.concatenate(([0.0], np.cumsum(odds.reshape(-1)[order])))
        seconds = self.cost.seconds(num_rows + np.arange(len(tokens)))
        seconds[1:] += self._draft_seconds * np.maximum.accumulate(column + 1)
        rate: npt.NDArray[np.float64] = tokens / seconds
        best = int(rate.argmax())
        if rate[best] < rate[0] * _GAIN:
            best = 0
        counts: list[int] = np.bincount(owner[:best], minlength=len(chances)).tolist()
        return counts
