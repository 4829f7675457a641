"""ReasoningFormatter: how the model's thoughts are shown to the one who asked.

Owns the three formats and the line breaks at the seam of thoughts and answer. Refuses to know JSON
and tokens: it reads the raw texts on either side of the closing think token.

    think_tags   content   = "<think>\\n" reasoning "</think>" answer
    split        reasoning = reasoning less one line break at its end; content = answer without
                 the line breaks it starts with
    hidden       as split, the reasoning withheld

"<think>\\n" is put back because the template, not the model, wrote it. A truncated reasoning has no
closing tag and keeps its last line break; its content is empty in split and hidden.
"""

from typing import Literal, NamedTuple

from cluster.request import RequestOutput

ReasoningFormat = Literal["think_tags", "split", "hidden"]
OPENING = "<think>\n"
CLOSING = "</think>"


class ClientDelta(NamedTuple):
    """A piece of text to show; exactly one of the two is not empty."""

    reasoning: str
    content: str


class ReasoningFormatter:
    """Follows one answer. The concatenated pieces do not depend on how the deltas were cut."""

    __slots__ = ("_at_content_start", "_format", "_held", "_opening", "_thinking")

    def __init__(self, format: ReasoningFormat, *, thinking: bool, continued: bool = False) -> None:
        """
        Args:
            thinking: whether the prompt ends in an open think block ...
            continued: ... which was opened by the one who asked, who has its tag already.
        """
        self._format = format
        self._thinking = thinking
        self._opening = ""
        if thinking and not continued and format == "think_tags":
            self._opening = OPENING
        self._held = ""
        self._at_content_start = False

    def push(self, output: RequestOutput) -> list[ClientDelta]:
        """What to show for a delta. One with a finish_reason also brings what was held back."""
        if self._format == "think_tags":
            return self._tagged(output)
        finished = output.finish_reason is not None
        reasoning = self._reasoning(output.reasoning, output.reasoning_ended, finished)
        if output.reasoning_ended:
            self._at_content_start = True
        content = output.content
        if self._at_content_start and content:
            content = content.lstrip("\n")
            self._at_content_start = not content
        deltas = []
        if reasoning and self._format == "split":
            deltas.append(ClientDelta(reasoning, ""))
        if content:
            deltas.append(ClientDelta("", content))
        return deltas

    def _tagged(self, output: RequestOutput) -> list[ClientDelta]:
        closing = CLOSING if output.reasoning_ended else ""
        text = f"{self._opening}{output.reasoning}{closing}{output.content}"
        self._opening = ""
        return [ClientDelta("", text)] if text else []

    def _reasoning(self, text: str, ended: bool, finished: bool) -> str:
        """A line break at the end is held until it is known not to be the last one."""
        if not self._thinking:
            return text
        text = self._held + text
        self._held = ""
        if ended:
            self._thinking = False
            return text.removesuffix("\n")
        if not finished and text.endswith("\n"):
            self._held = "\n"
            return text[:-1]
        return text
