"""ReasoningParser: on which side of the closing think token a generated id falls.

Owns the think state of one request and its count of reasoning tokens. Works on ids alone and
refuses to know text: a "</think>" that is spelt by ordinary tokens closes nothing.

    OPEN ---- generated id of </think>, once ----> ANSWER
    UNDECIDED (no assistant turn in the prompt): everything is content, tags are text
"""

import enum
from collections.abc import Sequence

from cluster.text.tokenizer import Tokenizer


class PromptState(enum.Enum):
    """What the prompt's end says of the first generated token."""

    OPEN = "open"
    """A think block is open: generation starts with reasoning."""
    ANSWER = "answer"
    """The assistant's turn is open without a think block, or its block is closed."""
    UNDECIDED = "undecided"
    """The prompt holds no assistant turn: a raw completion."""


def prompt_state(prompt_ids: Sequence[int], tokenizer: Tokenizer) -> PromptState:
    """The state after a prompt: the last think token behind the final assistant marker decides."""
    last_think: int | None = None
    for token_id in reversed(prompt_ids):
        if token_id == tokenizer.assistant_id:
            is_open = last_think == tokenizer.think_start_id
            return PromptState.OPEN if is_open else PromptState.ANSWER
        if last_think is None and token_id in (tokenizer.think_start_id, tokenizer.think_end_id):
            last_think = token_id
    return PromptState.UNDECIDED


class ReasoningParser:
    """Follows the generated ids of one request.

    `thinking` says whether the think block is open, `reasoning_tokens` counts the ids generated
    meanwhile. The closing token is a completion token but not a reasoning token, so where a block
    was closed reasoning + 1 + answer = completion tokens; where it never was, all of them are
    reasoning.
    """

    __slots__ = ("_think_end_id", "reasoning_tokens", "thinking")

    def __init__(self, state: PromptState, think_end_id: int) -> None:
        self.thinking = state is PromptState.OPEN
        self.reasoning_tokens = 0
        self._think_end_id = think_end_id

    def push(self, token_id: int) -> bool:
        """Takes the next generated id; whether it is the one that closes the think block."""
        if not self.thinking:
            return False
        if token_id == self._think_end_id:
            self.thinking = False
            return True
        self.reasoning_tokens += 1
        return False
