from hypothesis import given
from hypothesis import strategies as st

from cluster.engine.prediction import PredictionMatch


def matched(prediction: list[int], output: list[int]) -> tuple[int, int]:
    match = PredictionMatch(prediction)
    for token in output:
        match.push(token)
    return match.accepted, match.rejected


def test_a_repeated_prediction_is_accepted_whole() -> None:
    assert matched([1, 2, 3, 4], [1, 2, 3, 4]) == (4, 0)


def test_another_output_rejects_it_whole() -> None:
    assert matched([1, 2, 3, 4], [9, 8, 7]) == (0, 4)


def test_an_edit_loses_what_was_edited() -> None:
    prediction = list(range(100, 120))
    output = [*prediction[:5], 7, *prediction[6:12], 8, 9, *prediction[12:]]
    assert matched(prediction, output) == (19, 1)


def test_a_prediction_that_starts_late_is_found_by_two_tokens() -> None:
    assert matched([1, 2, 3], [50, 51, 1, 2, 3]) == (3, 0)
    assert matched([1, 2, 3], [50, 51, 2, 3]) == (2, 1)


def test_no_token_of_a_prediction_is_counted_twice() -> None:
    assert matched([1, 2], [1, 2, 1, 2, 1, 2]) == (2, 0)


def test_an_output_that_was_cut_rejects_the_rest() -> None:
    assert matched([1, 2, 3, 4], [1, 2]) == (2, 2)


def test_nothing_predicted_is_nothing_counted() -> None:
    assert matched([], [1, 2]) == (0, 0)


@given(
    st.lists(st.integers(0, 3), max_size=20),
    st.lists(st.integers(0, 3), max_size=40),
)
def test_the_counts_are_within_the_prediction_and_the_output(
    prediction: list[int], output: list[int]
) -> None:
    accepted, rejected = matched(prediction, output)
    assert accepted + rejected == len(prediction)
    assert 0 <= accepted <= len(output)
