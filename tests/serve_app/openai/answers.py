"""Answers of the engine, cut into deltas at will."""

from typing import NamedTuple

from hypothesis import strategies as st

from cluster.request import FinishReason, ReasoningStop, RequestOutput, Usage


class Answer(NamedTuple):
    """A whole answer: raw texts on either side of the closing think token."""

    reasoning: str
    ended: bool
    content: str
    thinking: bool = True
    finish_reason: FinishReason = FinishReason.STOP
    stop_reason: str | int | None = None
    reasoning_stop: ReasoningStop | None = None

    def deltas(self, cuts: list[int]) -> list[RequestOutput]:
        """The answer cut before the characters in `cuts`; the closing token counts as one."""
        marks = [*self.reasoning, *([None] if self.ended else []), *self.content]
        places = sorted({cut for cut in cuts if 0 < cut < len(marks)})
        spans = zip([0, *places], [*places, len(marks)], strict=True)
        pieces = [self._delta(start, end) for start, end in spans]
        pieces[-1].finish_reason = self.finish_reason
        pieces[-1].stop_reason = self.stop_reason
        pieces[-1].reasoning_stop = self.reasoning_stop
        pieces[-1].usage = Usage(24, len(marks), 8, len(self.reasoning))
        return pieces

    def _delta(self, start: int, end: int) -> RequestOutput:
        seam = len(self.reasoning)
        skip = seam + 1 if self.ended else seam
        return RequestOutput(
            "r1",
            reasoning=self.reasoning[start : min(end, seam)],
            content=self.content[max(start - skip, 0) : max(end - skip, 0)],
            reasoning_ended=self.ended and start <= seam < end,
        )


TEXT = st.text(alphabet="ab \n<>/é🍓\r", max_size=12)


@st.composite
def draw_answer(draw: st.DrawFn) -> Answer:
    thinking = draw(st.booleans())
    ended = thinking and draw(st.booleans())
    reasoning = draw(TEXT) if thinking else ""
    content = draw(TEXT) if ended or not thinking else ""
    return Answer(reasoning, ended, content, thinking)


STRAWBERRY = Answer("s-t-r: one r.\n", True, "\n\nThere are 3 r's.")
