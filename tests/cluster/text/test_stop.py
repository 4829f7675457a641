import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.text.stop import StopChecker

small = st.text(alphabet="ab\n日", max_size=30)
stops = st.lists(st.text(alphabet="ab\n日", min_size=1, max_size=5), max_size=4).map(tuple)


def read(checker: StopChecker, chunks: list[str]) -> tuple[list[str], str | None]:
    """What was released after each chunk, and the stop string that ended the text."""
    released = []
    for chunk in chunks:
        text, matched = checker.push(chunk)
        released.append(text)
        if matched is not None:
            return released, matched
    released.append(checker.flush())
    return released, None


def expected(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """By str.find on the whole text: what is complete first ends it, the longest of equals."""
    found = [(text.find(string) + len(string), text.find(string), string) for string in stop]
    found = [hit for hit in found if hit[1] >= 0]
    if not found:
        return text, None
    _, start, string = min(found)
    return text[:start], string


def longest_withheld(text: str, stop: tuple[str, ...]) -> int:
    sizes = [n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
    return max(sizes, default=0)


@given(text=small, stop=stops, cuts=st.lists(st.integers(0, 30), max_size=8))
@settings(deadline=None, max_examples=500)
def test_any_chunking_ends_where_str_find_says(
    text: str, stop: tuple[str, ...], cuts: list[int]
) -> None:
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    chunks = [text[start:end] for start, end in itertools.pairwise(edges)]
    released, matched = read(StopChecker(stop), chunks)
    assert ("".join(released), matched) == expected(text, stop)


@given(text=small, stop=stops)
@settings(deadline=None, max_examples=300)
def test_only_what_may_still_become_a_stop_string_is_withheld(
    text: str, stop: tuple[str, ...]
) -> None:
    checker = StopChecker(stop)
    shown = ""
    for position, character in enumerate(text):
        released, matched = checker.push(character)
        shown += released
        if matched is not None:
            break
        seen = text[: position + 1]
        assert shown == seen[: len(seen) - longest_withheld(seen, stop)]


def test_stop_string_split_across_two_chunks_is_withheld() -> None:
    checker = StopChecker(("END",))
    assert checker.push("the E") == ("the ", None)
    assert checker.push("N") == ("", None)
    assert checker.push("D of it") == ("", "END")


def test_withheld_text_is_released_when_it_turns_out_harmless() -> None:
    checker = StopChecker(("END",))
    assert checker.push("EN") == ("", None)
    assert checker.push("EN") == ("EN", None)
    assert checker.push("T") == ("ENT", None)
    assert checker.push("E") == ("", None)
    assert checker.flush() == "E"
    assert checker.flush() == ""


def test_longest_of_the_stop_strings_complete_at_one_character_wins() -> None:
    assert StopChecker(("bc", "abc")).push("xabcx") == ("x", "abc")
    assert StopChecker(("abc", "bc")).push("xabcx") == ("x", "abc")


def test_stop_string_complete_first_wins_over_one_that_began_earlier() -> None:
    assert StopChecker(("abcd", "bc")).push("xabcd") == ("xa", "bc")


def test_overlapping_beginnings_of_itself_do_not_hide_a_match() -> None:
    checker = StopChecker(("aab",))
    assert checker.push("aaa") == ("a", None)
    assert checker.push("b") == ("", "aab")


def test_no_stop_strings_withhold_nothing() -> None:
    checker = StopChecker(())
    assert checker.push("anything") == ("anything", None)
    assert checker.flush() == ""


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopChecker(("a", ""))
