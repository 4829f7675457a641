"""ChunkBudget: how much of a prompt fits into a step without keeping running streams waiting.

Owns what steps cost, as measured, and what follows for the chunks of the next one. Has no clock:
seconds are handed in, and with the same seconds it always gives the same chunks.

    seconds of a step = base(decodes) + tokens * (alpha + beta * context)

    base     a moving average of the steps without chunks, by the number of decodes in them
    alpha    what a token of a chunk costs beside them; beta what every token before it adds
             (attention): a line through (seconds above base) / tokens against the context,
             fitted by least squares in which older steps count less and less. Chunks without
             decodes are larger and cheaper by the token: they count until there were others

    |<-------------------- target ------------------->|
    |  margin  |   base(decodes)    |   room          |      chunks fill the room

The margin follows how far predictions were off lately, so that not the mean step but nearly every
step keeps the target. Chunks grow by half a step at most, because nothing is known of larger ones.
Where decodes alone leave no room, chunks may make the step longer by LEAST_SHARE all the same, and
a prompt gets MIN_CHUNK tokens in any case, or it would never begin. On a CPU that is bound by
arithmetic so few tokens cost as much as so many more streams: hence few.
Without a target, or without streams that wait for their next token, nothing is held back.
"""

import math
from typing import NamedTuple

from cluster.batch import SchedulerOutput

MIN_CHUNK = 4
LEAST_SHARE = 0.25
"""Of the decodes' time."""
_FIRST_LARGEST = 64
_GROWTH = 1.5
_FORGET = 0.97
"""What a measured chunk counts for after the next one."""
_MARGIN = 0.08
"""Of the target, whatever the predictions were worth."""
_DEVIATIONS = 2.5
_OUTLIER = 3.0
"""A step this many times longer than predicted says more about the machine than about chunks."""


class StepWork(NamedTuple):
    """What a step computed."""

    decodes: int
    tokens: int
    """Of all chunks."""
    context: int
    """Tokens before each token of the chunks, summed up."""

    @classmethod
    def of(cls, frame: SchedulerOutput) -> "StepWork":
        decodes = tokens = context = 0
        for share in frame.scheduled:
            count = share.num_tokens
            if count == 1 or share.draft_token_ids:
                decodes += 1
            else:
                tokens += count
                context += count * share.num_computed + count * (count - 1) // 2
        return cls(decodes, tokens, context)


class ChunkBudget:
    """Bounds the chunks of every step by a target.

    Args:
        target_s: the longest a step with running streams should take; None: no bound.
    """

    def __init__(self, target_s: float | None) -> None:
        self.target_s = target_s
        self._base: dict[int, float] = {}
        self._line = _Line()
        self._error = 0.05
        self._largest = _FIRST_LARGEST
        self._room: float | None = None
        self._begun = False
        self._beside = False

    def begin(self, num_decodes: int) -> None:
        """A step is planned that brings so many running streams their next token."""
        self._begun = False
        if self.target_s is None or not num_decodes:
            self._room = None
            return
        margin = max(_MARGIN, _DEVIATIONS * self._error)
        base = self.base(num_decodes)
        self._room = max(self.target_s / (1 + margin) - base, LEAST_SHARE * base)

    def take(self, position: int, wanted: int) -> int:
        """How many of the `wanted` tokens from `position` on this step may compute.

        Whoever asks behind one who got fewer than wanted gets none: prompts go on one by one.
        """
        if self._room is None:
            return wanted
        granted = min(wanted, self._fitting(position), int(self._largest * _GROWTH))
        if not self._begun:
            granted = max(granted, min(wanted, MIN_CHUNK))
        if granted:
            self._begun = True
            self._room -= self._line.seconds(granted, position + granted / 2)
        if granted < wanted:
            self._room = 0.0
        return granted

    def observe(self, work: StepWork, seconds: float) -> None:
        """A step took so long."""
        if self.target_s is None:
            return
        if not work.tokens:
            self._learn_base(work.decodes, seconds)
            return
        context = work.context / work.tokens
        predicted = self.base(work.decodes) + self._line.seconds(work.tokens, context)
        if work.decodes and predicted > 0 and self._line.known:
            off = min(abs(seconds / predicted - 1), 1.0)
            self._error += 0.05 * (off - self._error)
            seconds = min(seconds, _OUTLIER * predicted)
        above = max(0.0, seconds - self.base(work.decodes))
        self._learn_chunk(work, context, above / work.tokens)

    def base(self, num_decodes: int) -> float:
        """Seconds of a step without chunks; 0 while none was measured, or without decodes."""
        if not num_decodes or not self._base:
            return 0.0
        known = self._base.get(num_decodes)
        if known is None:
            nearest = min(self._base, key=lambda count: abs(count - num_decodes))
            known = self._base[nearest]
        return known

    def _learn_base(self, decodes: int, seconds: float) -> None:
        if not decodes:
            return
        known = self._base.get(decodes)
        if known is None:
            self._base[decodes] = seconds
        else:
            self._base[decodes] = known + 0.1 * (min(seconds, _OUTLIER * known) - known)

    def _learn_chunk(self, work: StepWork, context: float, each: float) -> None:
        if work.decodes and not self._beside:
            self._beside, self._line = True, _Line()
        if work.decodes or not self._beside:
            self._line.observe(context, each, weight=work.tokens)
        if work.decodes:
            self._largest = max(work.tokens, int(_FORGET * self._largest))

    def _fitting(self, position: int) -> int:
        """The largest n with n * (alpha + beta * (position + n / 2)) <= room."""
        room = self._room or 0.0
        if room <= 0:
            return 0
        if not self._line.known:
            return MIN_CHUNK
        alpha, beta = self._line.coefficients()
        each = max(alpha + beta * position, 1e-9)
        if beta * room < 1e-6 * each * each:
            return int(room / each)
        return int((math.sqrt(each * each + 2 * beta * room) - each) / beta)


class _Line:
    """y = alpha + beta * x through weighted points that are gradually forgotten."""

    def __init__(self) -> None:
        self._w = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def known(self) -> bool:
        return self._w > 0

    def observe(self, x: float, y: float, weight: float) -> None:
        self._w = self._w * _FORGET + weight
        self._x = self._x * _FORGET + weight * x
        self._y = self._y * _FORGET + weight * y
        self._xx = self._xx * _FORGET + weight * x * x
        self._xy = self._xy * _FORGET + weight * x * y

    def coefficients(self) -> tuple[float, float]:
        """(alpha, beta), neither below 0: more work never takes less time."""
        if not self._w:
            return 0.0, 0.0
        mean_x, mean_y = self._x / self._w, self._y / self._w
        spread = self._xx / self._w - mean_x * mean_x
        if spread <= 1e-6 * (1 + mean_x * mean_x):
            return mean_y, 0.0
        beta = max(0.0, (self._xy / self._w - mean_x * mean_y) / spread)
        alpha = mean_y - beta * mean_x
        return (alpha, beta) if alpha >= 0 else (0.0, mean_y / mean_x)

    def seconds(self, tokens: int, context: float) -> float:
        alpha, beta = self.coefficients()
        return tokens * (alpha + beta * context)
