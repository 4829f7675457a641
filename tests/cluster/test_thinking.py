from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import thinking as module
from cluster.request import ReasoningStop, ThinkingRule
from cluster.thinking import Ahead, Thinking, circle

END = 9
CLOSING = (7, END, 8)
"""Some last word, the closing token, a blank line."""
FEW = st.lists(st.integers(0, 2), max_size=60)


@pytest.fixture
def small_circles() -> Iterator[None]:
    """Circles that hypothesis can find."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "MAX_PERIOD": 5,
            "MIN_ROUNDS": 3,
            "MIN_CIRCLING": 7,
            "LOOK_EVERY": 4,
            "_ALIKE": 2,
        }.items():
            patch.setattr(module, name, value)
        yield


def goes_round(ids: Sequence[int]) -> bool:
    """The definition, word by word."""
    for period in range(1, module.MAX_PERIOD + 1):
        length = max(module.MIN_ROUNDS * period, module.MIN_CIRCLING)
        end = list(ids[-length:])
        if len(end) == length and all(end[i] == end[i - period] for i in range(period, length)):
            return True
    return False


def said(rule: ThinkingRule, drawn: Sequence[int]) -> tuple[list[int], int, ReasoningStop | None]:
    """What is said where the model would say `drawn`; how much of it are thoughts, what ended them.

    Written down from the rule at once, and not token by token.
    """
    for place in range(len(drawn) + 1):
        thoughts = list(drawn[:place])
        stop = None
        if rule.budget is not None and place >= rule.budget:
            stop = ReasoningStop.BUDGET
        elif rule.breaks_loops and place and not place % module.LOOK_EVERY and goes_round(thoughts):
            stop = ReasoningStop.LOOP
        if stop is not None:
            output = [*thoughts, *rule.closing, *drawn[place + len(rule.closing) :]][: len(drawn)]
            end = place + rule.closing.index(rule.end_id)
            return output, min(end, len(drawn)), stop
        if place < len(drawn) and drawn[place] == rule.end_id:
            return list(drawn), place, None
    return list(drawn), len(drawn), None


def follow(thinking: Thinking, drawn: Sequence[int]) -> list[int]:
    """What is said, one token after the other."""
    output = []
    for token_id in drawn:
        output.append(token_id if thinking.forced is None else thinking.forced)
        thinking.push(output[-1])
    return output


RULES = st.builds(
    ThinkingRule,
    end_id=st.just(END),
    budget=st.none() | st.integers(0, 40),
    closing=st.sampled_from([CLOSING, (END,), (END, 8), (1, 1, END)]),
    breaks_loops=st.booleans(),
)
DRAWN = st.lists(st.integers(0, 1) | st.sampled_from([0, 0, 0, 1, 1, 2, END]), max_size=60) | (
    st.tuples(FEW, st.lists(st.integers(0, 2), min_size=1, max_size=5), FEW).map(
        lambda parts: parts[0] + parts[1] * 12 + parts[2]
    )
)


@given(rule=RULES, drawn=DRAWN)
@settings(max_examples=500, deadline=None)
@pytest.mark.usefixtures("small_circles")
def test_what_is_said_is_what_the_rule_says(rule: ThinkingRule, drawn: list[int]) -> None:
    thinking = Thinking(rule)
    output, num_thoughts, stop = said(rule, drawn)
    assert follow(thinking, drawn) == output
    assert (thinking.num_tokens, thinking.stop) == (num_thoughts, stop)
    closed = END in output
    assert thinking.thinking != closed
    answer = output[output.index(END) + 1 :] if closed else []
    assert thinking.num_tokens + closed + len(answer) == len(output)


@given(rule=RULES, drawn=DRAWN, drafts=DRAWN, at=st.integers(0, 60))
@settings(max_examples=500, deadline=None)
@pytest.mark.usefixtures("small_circles")
def test_what_is_ahead_is_what_comes_and_leaves_no_trace(
    rule: ThinkingRule, drawn: list[int], drafts: list[int], at: int
) -> None:
    one, other = Thinking(rule), Thinking(rule)
    follow(one, drawn[:at])
    follow(other, drawn[:at])
    seen = one.ahead(drafts)
    for token, draft in zip(seen, drafts, strict=False):
        assert token == Ahead(other.forced, other.answering)
        other.push(draft)
    assert seen[-1] == Ahead(other.forced, other.answering)
    again = Thinking(rule)
    follow(again, drawn[:at])
    rest = [*drafts, *drawn]
    assert follow(one, rest) == follow(again, rest)
    assert (one.num_tokens, one.stop) == (again.num_tokens, again.stop)


@given(start=FEW, period=st.lists(st.integers(0, 3), min_size=1, max_size=40), more=st.integers())
@settings(max_examples=200, deadline=None)
def test_a_long_circle_is_found_and_a_shorter_one_is_not(
    start: list[int], period: list[int], more: int
) -> None:
    length = max(module.MIN_ROUNDS * len(period), module.MIN_CIRCLING)
    ids = (period * length)[more % len(period) :][:length]
    found = circle([*start, *ids])
    assert found is not None
    assert ids[found:] == ids[:-found]
    assert len(period) % found == 0
    assert circle([4, *ids[1:]]) is None


def test_a_list_that_counts_on_is_no_circle() -> None:
    lines = [[10, count % 100, count // 100 + 200, 11] for count in range(400)]
    assert circle([token_id for line in lines for token_id in line]) is None


def test_the_longest_circle_is_found_and_a_longer_one_is_not() -> None:
    for period, found in ((module.MAX_PERIOD, module.MAX_PERIOD), (module.MAX_PERIOD + 1, None)):
        assert circle(list(range(period)) * module.MIN_ROUNDS) == found


def test_no_budget_closes_the_answer_and_no_second_tag_opens_it_again() -> None:
    thinking = Thinking(ThinkingRule(END, 3, CLOSING, True))
    assert follow(thinking, [1, END, 5, 5, END, 5, 5, 5, 5]) == [1, END, 5, 5, END, 5, 5, 5, 5]
    assert thinking.answering
    assert (thinking.num_tokens, thinking.stop) == (1, None)


def test_a_budget_of_nothing_closes_before_the_first_thought() -> None:
    thinking = Thinking(ThinkingRule(END, 0, (END, 8)))
    assert follow(thinking, [1, 2, 3]) == [END, 8, 3]
    assert (thinking.num_tokens, thinking.stop) == (0, ReasoningStop.BUDGET)


def test_the_blank_line_is_neither_thought_nor_free() -> None:
    thinking = Thinking(ThinkingRule(END, 1, (END, 8)))
    seen = thinking.ahead([1, END, 8])
    assert seen == [Ahead(None, False), Ahead(END, False), Ahead(8, False), Ahead(None, True)]


def test_without_a_rule_all_is_answer() -> None:
    thinking = Thinking(None)
    assert thinking.answering
    assert not any(thinking.push(token_id) for token_id in (1, END, -1, END))
    assert (thinking.num_tokens, thinking.forced, thinking.answering) == (0, None, True)


@pytest.mark.parametrize(
    "broken",
    [
        {"budget": -1, "closing": CLOSING},
        {"budget": 3},
        {"budget": 3, "closing": (7, 8)},
        {"breaks_loops": True},
        {"closing": (-1,)},
    ],
)
def test_a_rule_that_closes_by_nothing_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        ThinkingRule(END, **broken)  # type: ignore[arg-type]
