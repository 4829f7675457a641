"""Thinking: whether an output is still among its thoughts, and which token must come next.

Owns the side of the closing think token on which a generated id falls, the count of thoughts, and
when the thoughts are closed by force: a budget is used up, or they go round in a circle. All of it
is a function of the output's ids alone, so whoever follows the same ids finds the same: every rank
for its rows, also those of drafts (which token is forced, where penalties begin), a grammar (from
which token on it holds), the replica (how many tokens were thoughts, what ended them). Knows ids
and refuses to know text, rows, logits and prompts: whether a think block is open at the beginning
is told by the rule, or by there being none.

    prompt ... <think> | t t t t t t t | b b </think> \\n\\n | a a a a EOS
    thinking             yes             yes yes      no     no
    forced               -               b b </think> \\n\\n   -
    answering            no              no                  yes

A block closes once; further think tokens are text of the answer, and no rule looks at them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from cluster.request import ReasoningStop, ThinkingRule

MAX_PERIOD = 1024
"""The longest circle that is looked for, in tokens ..."""
MIN_ROUNDS = 4
"""... how often it must be gone round ..."""
MIN_CIRCLING = 128
"""... and how many tokens that must take at least."""
LOOK_EVERY = 32
"""Thoughts between two looks for circles."""
_ALIKE = 8


class Ahead(NamedTuple):
    """What is known of a token before it is drawn."""

    forced: int | None
    """The id that it must have."""
    answering: bool
    """Whether it belongs to the answer, and is free."""


class Thinking:
    """Follows the ids of one output.

    Attributes:
        thinking: whether the think block is open.
        forced: the id that must come next; None leaves it to the model.
        num_tokens: ids generated while the block was open, the closing one not among them.
        stop: why the thoughts were closed by force; None where they were not.
    """

    __slots__ = ("_ids", "_num_forced", "_rule", "forced", "num_tokens", "stop", "thinking")

    def __init__(self, rule: ThinkingRule | None) -> None:
        """`rule`: None where the prompt leaves no think block open: all is answer."""
        self._rule = rule or ThinkingRule(end_id=-1)
        self._ids: list[int] = []
        self._num_forced = 0
        self.thinking = rule is not None
        self.forced: int | None = None
        self.num_tokens = 0
        self.stop: ReasoningStop | None = None
        if self.thinking:
            self._look()

    @property
    def answering(self) -> bool:
        """Whether the next token belongs to the answer, and is free."""
        return not self.thinking and self.forced is None

    def push(self, token_id: int) -> bool:
        """Takes the next id of the output; whether it is the one that closes the think block."""
        closes = self.thinking and token_id == self._rule.end_id
        if closes:
            self.thinking = False
        elif self.thinking:
            self.num_tokens += 1
        if self.stop is not None:
            self._force(self._num_forced + 1)
        elif self.thinking:
            if self._rule.breaks_loops:
                self._ids.append(token_id)
            self._look()
        return closes

    def ahead(self, drafts: Sequence[int]) -> list[Ahead]:
        """Of the next token, and of those behind each draft, should the drafts come true."""
        seen = [Ahead(self.forced, self.answering)]
        if not drafts:
            return seen
        state = (self.thinking, self.forced, self.num_tokens, self.stop, self._num_forced)
        num_ids = len(self._ids)
        for draft in drafts:
            self.push(draft)
            seen.append(Ahead(self.forced, self.answering))
        self.thinking, self.forced, self.num_tokens, self.stop, self._num_forced = state
        del self._ids[num_ids:]
        return seen

    def _look(self) -> None:
        """Closes the thoughts behind the last of them if it must be."""
        rule = self._rule
        if rule.budget is not None and self.num_tokens >= rule.budget:
            self.stop = ReasoningStop.BUDGET
        elif self._ids and not len(self._ids) % LOOK_EVERY and circle(self._ids) is not None:
            self.stop = ReasoningStop.LOOP
        if self.stop is not None:
            self._force(0)

    def _force(self, place: int) -> None:
        closing = self._rule.closing
        self._num_forced = place
        self.forced = closing[place] if place < len(closing) else None


def circle(ids: Sequence[int]) -> int | None:
    """The length of the circle in which `ids` end, if they do: the shortest period of their last
    tokens, MIN_ROUNDS rounds and MIN_CIRCLING tokens at least."""
    num_ids = len(ids)
    if num_ids < MIN_CIRCLING:
        return None
    end = ids[-_ALIKE:]
    for period in range(1, min(MAX_PERIOD, num_ids // MIN_ROUNDS) + 1):
        if ids[-1 - period] != end[-1] or ids[-_ALIKE - period : -period] != end:
            continue
        begin = num_ids - max(MIN_ROUNDS * period, MIN_CIRCLING)
        if ids[begin + period :] == ids[begin : num_ids - period]:
            return period
    return None
