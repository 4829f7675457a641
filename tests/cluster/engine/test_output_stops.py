"""Stop strings that are looked for in the thoughts too, against a look at the whole text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.request import FinishReason, SamplingParams
from cluster.text.tokenizer import THINK_END
from tests.cluster.engine.test_output_processor import run, text_ids

EVERYWHERE = SamplingParams(stop=("END", "\n\n"), stops_thoughts=True, max_tokens=500)
TEXT = st.text(alphabet="END \nx", max_size=14)


def cut(text: str) -> tuple[str, str | None]:
    """Up to the stop string that is complete first."""
    ends = [(text.index(stop) + len(stop), stop) for stop in EVERYWHERE.stop if stop in text]
    if not ends:
        return text, None
    end, stop = min(ends)
    return text[: end - len(stop)], stop


@given(thoughts=TEXT, answer=TEXT, closes=st.booleans(), cuts=st.lists(st.integers(0, 30)))
@settings(deadline=None, max_examples=300)
def test_thoughts_and_answer_end_at_their_first_stop_string(
    thoughts: str, answer: str, closes: bool, cuts: list[int]
) -> None:
    said = f"{thoughts}{THINK_END}{answer}" if closes else thoughts
    delta = run(text_ids(said), EVERYWHERE, cuts, FinishReason.LENGTH)
    reasoning, stop = cut(thoughts)
    assert delta.reasoning == reasoning
    assert delta.reasoning_ended == (closes and stop is None)
    content = ""
    if delta.reasoning_ended:
        content, stop = cut(answer)
    assert delta.content == content
    assert delta.stop_reason == stop
    assert delta.finish_reason is (FinishReason.LENGTH if stop is None else FinishReason.STOP)


def test_a_stop_string_ends_nothing_across_the_seam() -> None:
    delta = run(text_ids(f"the EN{THINK_END}D"), EVERYWHERE, [], FinishReason.LENGTH)
    assert (delta.reasoning, delta.content, delta.stop_reason) == ("the EN", "D", None)
