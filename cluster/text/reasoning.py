"""PromptState: what the end of a prompt says of the output's beginning.

Works on ids alone and refuses to know text: a "<think>" that is spelt by ordinary tokens opens
nothing.

    OPEN        a think block is open: the output begins with thoughts, see `cluster.thinking`
    ANSWER      none is, in an assistant's turn
    UNDECIDED   no assistant's turn in the prompt: everything is content, tags are text
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
