import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.worker.rejection import accept


def test_a_row_without_drafts_gets_its_token() -> None:
    assert accept([[], []], [4, 5], [True, True]) == [[4], [5]]


@pytest.mark.parametrize(
    ("draft", "drawn", "given"),
    [
        ([1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4]),
        ([1, 2, 3], [1, 9, 3, 4], [1, 9]),
        ([1, 2, 3], [9, 2, 3, 4], [9]),
        ([7], [7, 7], [7, 7]),
    ],
)
def test_drafts_stand_while_they_are_what_was_drawn(
    draft: list[int], drawn: list[int], given: list[int]
) -> None:
    assert accept([draft], drawn, [True] * len(drawn)) == [given]


def test_rows_are_judged_one_by_one() -> None:
    drafts = [[1, 2], [], [5], [6, 6]]
    drawn = [1, 3, 0, 8, 5, 4, 6, 6, 6]
    assert accept(drafts, drawn, [True] * 9) == [[1, 3], [8], [5, 4], [6, 6, 6]]


def test_a_row_ends_before_its_first_unhealthy_position() -> None:
    drafts = [[1, 2], [1, 2], [3], [1, 2]]
    drawn = [1, 2, 3, 1, 2, 3, 3, 4, 9, 2, 3]
    healthy = [True, False, True, False, True, True, True, True, True, False, False]
    assert accept(drafts, drawn, healthy) == [[1], [], [3, 4], [9]]


@given(st.lists(st.lists(st.integers(0, 1), max_size=4), max_size=5), st.integers(0, 2**31))
def test_the_given_tokens_are_those_drawn_one_at_a_time(
    drafts: list[list[int]], number: int
) -> None:
    """The oracle draws each token from what a function of the tokens before it says."""
    random = np.random.default_rng(number)
    table = random.integers(0, 2, 1 << 12).tolist()

    def next_token(row: int, tokens: list[int]) -> int:
        path = row + 1
        for token in tokens:
            path = path * 2 + token
        drawn: int = table[path % len(table)]
        return drawn

    drawn = [next_token(r, d[:n]) for r, d in enumerate(drafts) for n in range(len(d) + 1)]
    for row, tokens in enumerate(accept(drafts, drawn, [True] * len(drawn))):
        plain: list[int] = []
        for _ in tokens:
            plain.append(next_token(row, plain))
        assert tokens == plain
        assert tokens[:-1] == drafts[row][: len(tokens) - 1]
