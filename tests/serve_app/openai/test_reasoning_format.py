from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.request import RequestOutput
from serve_app.openai.reasoning_format import ClientDelta, ReasoningFormat, ReasoningFormatter
from tests.serve_app.openai.answers import STRAWBERRY, Answer, draw_answer

FORMATS: tuple[ReasoningFormat, ...] = ("think_tags", "split", "hidden")


def shown(answer: Answer, format: ReasoningFormat) -> tuple[str, str]:
    """What a client must see in the end, from the whole texts."""
    if format == "think_tags":
        opening = "<think>\n" if answer.thinking else ""
        closing = "</think>" if answer.ended else ""
        return "", f"{opening}{answer.reasoning}{closing}{answer.content}"
    reasoning = answer.reasoning.removesuffix("\n") if answer.ended else answer.reasoning
    content = answer.content.lstrip("\n") if answer.ended else answer.content
    return reasoning if format == "split" else "", content


def pushed(
    formatter: ReasoningFormatter, outputs: Iterable[RequestOutput]
) -> list[list[ClientDelta]]:
    return [formatter.push(output) for output in outputs]


def joined(pieces: list[list[ClientDelta]]) -> tuple[str, str]:
    flat = [delta for deltas in pieces for delta in deltas]
    return "".join(d.reasoning for d in flat), "".join(d.content for d in flat)


@pytest.mark.parametrize("format", FORMATS)
@given(answer=draw_answer(), cuts=st.lists(st.integers(0, 26), max_size=26))
@settings(deadline=None, max_examples=300)
def test_pieces_join_to_the_whole_however_the_answer_is_cut(
    format: ReasoningFormat, answer: Answer, cuts: list[int]
) -> None:
    pieces = pushed(ReasoningFormatter(format, thinking=answer.thinking), answer.deltas(cuts))
    assert joined(pieces) == shown(answer, format)


@pytest.mark.parametrize("format", FORMATS)
@given(answer=draw_answer(), cuts=st.lists(st.integers(0, 26), max_size=26))
@settings(deadline=None, max_examples=100)
def test_no_piece_is_empty_or_holds_both_texts(
    format: ReasoningFormat, answer: Answer, cuts: list[int]
) -> None:
    formatter = ReasoningFormatter(format, thinking=answer.thinking)
    for deltas in pushed(formatter, answer.deltas(cuts)):
        assert all(bool(delta.reasoning) != bool(delta.content) for delta in deltas)


def test_tags_follow_the_page() -> None:
    formatter = ReasoningFormatter("think_tags", thinking=True)
    content = joined(pushed(formatter, STRAWBERRY.deltas([3, 9])))[1]
    assert content == "<think>\ns-t-r: one r.\n</think>\n\nThere are 3 r's."


def test_truncated_thinking_has_no_closing_tag_and_no_content() -> None:
    answer = Answer("hm\n", False, "")
    tagged = ReasoningFormatter("think_tags", thinking=True)
    assert joined(pushed(tagged, answer.deltas([1]))) == ("", "<think>\nhm\n")
    split = ReasoningFormatter("split", thinking=True)
    assert joined(pushed(split, answer.deltas([1]))) == ("hm\n", "")


def test_a_line_break_that_may_be_the_last_is_withheld_until_more_text_comes() -> None:
    formatter = ReasoningFormatter("split", thinking=True)
    assert formatter.push(RequestOutput("r", reasoning="one\n")) == [("one", "")]
    assert formatter.push(RequestOutput("r", reasoning="\n")) == [("\n", "")]
    assert formatter.push(RequestOutput("r", reasoning="two\n")) == [("\ntwo", "")]
    end = RequestOutput("r", reasoning_ended=True, content="\n")
    assert formatter.push(end) == []
    assert formatter.push(RequestOutput("r", content="\nyes\n")) == [("", "yes\n")]


def test_thoughts_and_answer_of_one_delta_become_two_pieces() -> None:
    formatter = ReasoningFormatter("split", thinking=True)
    both = RequestOutput("r", reasoning="hm", reasoning_ended=True, content="\n\nyes")
    assert formatter.push(both) == [("hm", ""), ("", "yes")]


def test_hidden_thoughts_never_show() -> None:
    formatter = ReasoningFormatter("hidden", thinking=True)
    pieces = joined(pushed(formatter, STRAWBERRY.deltas(list(range(40)))))
    assert pieces == ("", "There are 3 r's.")


def test_an_answer_without_thoughts_keeps_its_first_line_breaks() -> None:
    for format in FORMATS:
        formatter = ReasoningFormatter(format, thinking=False)
        pieces = pushed(formatter, Answer("", False, "\n\nyes", thinking=False).deltas([1]))
        assert joined(pieces) == ("", "\n\nyes")


def test_a_continued_turn_is_not_opened_again() -> None:
    formatter = ReasoningFormatter("think_tags", thinking=True, continued=True)
    pieces = joined(pushed(formatter, STRAWBERRY.deltas([4])))
    assert pieces == ("", "s-t-r: one r.\n</think>\n\nThere are 3 r's.")
