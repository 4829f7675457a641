"""ThinkingRules: what a chat asks of its thoughts, as an ending of its prompt and a rule for the
engine.

Owns the words with which thoughts are closed by force, and that these count within a budget, so
that no budget is ever exceeded. Knows no HTTP and no engine.

    budget 6    t t t t | \\n </think> \\n\\n | answer        reasoning tokens 5 or 6, never more
                thoughts  closing words
"""

from collections.abc import Sequence

from cluster.request import ThinkingRule
from cluster.text.reasoning import PromptState, prompt_state
from cluster.text.template import Ending
from cluster.text.tokenizer import Tokenizer
from serve_app.openai.schema import ChatCompletionRequest


class ThinkingRules:
    """Makes the rules of one model. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, closing_words: str) -> None:
        """`closing_words`: what thoughts that are closed by force end with; may be empty."""
        self._tokenizer = tokenizer
        self._words = tuple(tokenizer.encode_content(closing_words)) if closing_words else ()
        self._close = (tokenizer.think_end_id, *tokenizer.encode("\n\n"))

    def ending(self, request: ChatCompletionRequest) -> Ending:
        """How the prompt ends."""
        if request.continue_final_message:
            return "continued"
        if request.add_generation_prompt is False:
            return "bare"
        return "closed" if self._budget(request) == 0 else "open"

    def rule(self, request: ChatCompletionRequest, prompt: Sequence[int]) -> ThinkingRule | None:
        """What holds for the thoughts that begin behind `prompt`; None if none do."""
        if prompt_state(prompt, self._tokenizer) is not PromptState.OPEN:
            return None
        budget, closing = self._budget(request), self._words + self._close
        if budget is not None and budget > len(self._words):
            budget -= len(self._words)
        elif budget is not None:
            closing = self._close
        end_id = self._tokenizer.think_end_id
        return ThinkingRule(end_id, budget, closing, request.loop_breaker)

    def _budget(self, request: ChatCompletionRequest) -> int | None:
        return request.thinking_tokens(num_closing=len(self._close))
