"""TokenDetails: what a choice tells of its tokens beside their text, where a request asks for it.

Owns the fields `logprobs` and `token_ids` of a choice, whole or in pieces. Refuses to know text:
which tokens content shows is `logprobs`' matter. Hidden thoughts are hidden here too.
"""

from typing import Any

from cluster.request import RequestOutput
from cluster.text.tokenizer import Tokenizer
from serve_app.openai.logprobs import ContentLogprobs
from serve_app.openai.reasoning_format import ReasoningFormat


class TokenDetails:
    """Follows one choice: `push` every delta, `take` what came since the last time."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        format: ReasoningFormat,
        *,
        thinking: bool,
        continued: bool = False,
        top_logprobs: int | None,
        token_ids: bool,
    ) -> None:
        """
        Args:
            thinking: whether the prompt ends in an open think block ...
            continued: ... which was opened by the one who asked.
            top_logprobs: how many of the likeliest tokens to tell beside each; None tells none.
            token_ids: whether to tell the generated ids.
        """
        self._logprobs: ContentLogprobs | None = None
        if top_logprobs is not None:
            self._logprobs = ContentLogprobs(
                tokenizer, format, top_logprobs, thinking=thinking, continued=continued
            )
        self._tells_ids = token_ids
        self._hides = thinking and format == "hidden"
        self._think_end_id = tokenizer.think_end_id
        self._entries: list[dict[str, Any]] = []
        self._token_ids: list[int] = []

    def push(self, output: RequestOutput, content: str) -> None:
        """The next delta; `content` is what of it is shown as content."""
        if self._logprobs is not None:
            self._entries += self._logprobs.push(output, content)
        if self._tells_ids:
            self._token_ids += self._told(output.token_ids)

    def take(self) -> dict[str, Any]:
        """The fields of the choice, for what came since the last call."""
        fields: dict[str, Any] = {"logprobs": None}
        if self._logprobs is not None:
            fields["logprobs"] = {"content": self._entries, "refusal": None}
        if self._tells_ids:
            fields["token_ids"] = self._token_ids
        self._entries, self._token_ids = [], []
        return fields

    def _told(self, token_ids: list[int]) -> list[int]:
        if not self._hides:
            return token_ids
        if self._think_end_id not in token_ids:
            return []
        self._hides = False
        return token_ids[token_ids.index(self._think_end_id) + 1 :]
