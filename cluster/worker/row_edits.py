"""RowEdits: which logits the rows of a batch want changed, by what they said so far.

Owns each such row's biases and its count of every id that penalties look at, kept as tokens come:
a step costs array work on distinct ids, never a walk over the output. What would be said in a
draft counts for the positions behind it. Every rank has its own and finds the same. Knows no
logits; a row that asks for none of this costs nothing.

    prompt          seen, for the repetition penalty; not counted
    thoughts        neither, unless the request says so
    answer so far   seen and counted
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.batch import StartedRow
from cluster.request import MAX_BIAS, SamplingParams
from cluster.thinking import Thinking
from cluster.worker.logit_edits import Entries, LogitEdits

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

CERTAIN = float(2**16)
"""What the highest and the lowest bias weigh: more than any logit and all penalties of an output,
yet finite, so that a row whose every id is banned still draws one."""

_FIRST_ROOM = 64


class RowEdits:
    """Follows the rows of a batch."""

    def __init__(self) -> None:
        self._counts: dict[int, _Counts] = {}
        self._biases: dict[int, tuple[Ints, Floats]] = {}

    def start(self, started: StartedRow) -> None:
        """A request enters a row, perhaps with some of its output known already."""
        params = started.params
        if params.penalizes:
            self._counts[started.row] = _Counts(started)
        if params.logit_bias:
            self._biases[started.row] = _bias(params)

    def release(self, row: int) -> None:
        """The row's request left."""
        self._counts.pop(row, None)
        self._biases.pop(row, None)

    def record(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
        """What rows drew."""
        if not self._counts:
            return
        for row, drawn in zip(rows, token_ids, strict=True):
            if (counts := self._counts.get(row)) is not None:
                for token_id in drawn:
                    counts.push(token_id)

    def edits(self, rows: Sequence[int], drafts: Sequence[Sequence[int]]) -> LogitEdits | None:
        """For every sampling position (a row's next token, then those behind each of its drafts),
        numbered in this order; None where nothing is changed."""
        if not (self._counts or self._biases):
            return None
        said, raised = _Columns(), _Columns()
        rules: list[_Rule] = []
        first = 0
        for row, draft in zip(rows, drafts, strict=True):
            if (counts := self._counts.get(row)) is not None:
                for place, ids, times in counts.ahead(draft):
                    said.add(first + place, ids, times)
                    rules.append(counts.rule)
            if (bias := self._biases.get(row)) is not None:
                for place in range(1 + len(draft)):
                    raised.add(first + place, *bias)
            first += 1 + len(draft)
        if not (said or raised):
            return None
        return LogitEdits(*_penalties(said, rules), raised.entries())


class _Rule(NamedTuple):
    """A row's penalties."""

    factor: float
    presence: float
    frequency: float


def _penalties(said: "_Columns", rules: Sequence[_Rule]) -> tuple[Entries, Entries]:
    """(what divides logits, what is taken from them), of all rows at once.

    Args:
        said: how often each id was said; ids that were only seen, 0 times.
        rules: of each of its positions.
    """
    positions, ids, times = said.entries()
    each = np.repeat(np.array(rules, np.float64).reshape(-1, 3), said.counts(), axis=0)
    factor, presence, frequency = each[:, 0], each[:, 1], each[:, 2].astype(np.float32)
    divided = factor != 1
    lowered = (presence * (times > 0) + frequency * times).astype(np.float32)
    return (
        Entries(positions[divided], ids[divided], factor[divided].astype(np.float32)),
        Entries(positions, ids, lowered),
    )


class _Counts:
    """How often a row said what, among what counts."""

    __slots__ = ("_ids", "_places", "_thinking", "_times", "rule")

    def __init__(self, started: StartedRow) -> None:
        params, num_prompt = started.params, started.num_prompt_tokens
        factor = params.repetition_penalty
        self.rule = _Rule(factor, params.presence_penalty, params.frequency_penalty)
        self._thinking: Thinking | None = None
        output = started.token_ids[num_prompt:]
        if params.thinking is not None and not params.penalizes_thoughts:
            self._thinking = Thinking(params.thinking)
            output = _behind_thoughts(self._thinking, output)
        prompt = started.token_ids[:num_prompt] if factor != 1 else []
        ids, places = np.unique(np.array(prompt + output, np.int64), return_inverse=True)
        times = np.bincount(places[len(prompt) :], minlength=len(ids))
        self._ids: Ints = ids
        self._times: Floats = times.astype(np.float32)
        self._places = {token_id: place for place, token_id in enumerate(ids.tolist())}

    def push(self, token_id: int) -> None:
        """The next token of the output."""
        if self._thinking is not None:
            if not self._thinking.answering:
                self._thinking.push(token_id)
                return
            self._thinking = None
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            room = max(place, _FIRST_ROOM)
            self._ids = np.concatenate((self._ids, np.zeros(room, np.int64)))
            self._times = np.concatenate((self._times, np.zeros(room, np.float32)))
        self._ids[place] = token_id
        self._times[place] += 1

    def ahead(self, draft: Sequence[int]) -> Iterator[tuple[int, Ints, Floats]]:
        """(place, ids that were seen, how often they were said) of the next token, at place 0, and
        of those behind each token of the draft, where penalties hold."""
        if not draft:
            if self._thinking is None or self._thinking.answering:
                yield 0, *self._with(())
            return
        holds = [True] * (1 + len(draft))
        if self._thinking is not None:
            holds = [token.answering for token in self._thinking.ahead(draft)]
        said: list[int] = []
        for place in np.flatnonzero(holds).tolist():
            yield place, *self._with(said)
            said += draft[place : place + 1]

    def _with(self, said: Sequence[int]) -> tuple[Ints, Floats]:
        size = len(self._places)
        ids, times = self._ids[:size], self._times[:size]
        if not said:
            return ids, times
        times, new = times.copy(), Counter[int]()
        for token_id in said:
            place = self._places.get(token_id)
            if place is None:
                new[token_id] += 1
            else:
                times[place] += 1
        new_times = np.fromiter(new.values(), np.float32)
        return np.append(ids, np.fromiter(new, np.int64)), np.append(times, new_times)


class _Columns:
    """Entries as they are found."""

    def __init__(self) -> None:
        self._positions: list[int] = []
        self._ids: list[Ints] = []
        self._values: list[Floats] = []

    def __len__(self) -> int:
        return len(self._positions)

    def add(self, position: int, ids: Ints, values: Floats) -> None:
        self._positions.append(position)
        self._ids.append(ids)
        self._values.append(values)

    def counts(self) -> list[int]:
        """Entries of each position."""
        return [len(ids) for ids in self._ids]

    def entries(self) -> Entries:
        none: list[Ints] = [np.zeros(0, np.int64)]
        return Entries(
            np.repeat(np.array(self._positions, np.int64), self.counts()),
            np.concatenate(none + self._ids),
            np.concatenate([np.zeros(0, np.float32), *self._values]).astype(np.float32),
        )


def _behind_thoughts(thinking: Thinking, output: list[int]) -> list[int]:
    """What of an output belongs to the answer; `thinking` has read what comes before."""
    for count, token_id in enumerate(output):
        if thinking.answering:
            return output[count:]
        thinking.push(token_id)
    return []


def _bias(params: SamplingParams) -> tuple[Ints, Floats]:
    values = np.fromiter(params.logit_bias.values(), np.float32)
    most = np.float32(MAX_BIAS)
    values = np.where(np.abs(values) >= most, np.sign(values) * np.float32(CERTAIN), values)
    return np.fromiter(params.logit_bias, np.int64), values
