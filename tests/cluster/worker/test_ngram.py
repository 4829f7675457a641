import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.batch import StartedRow
from cluster.request import SamplingParams
from cluster.worker.ngram import LONGEST_MATCH, NgramProposer


def started(
    prompt: list[int], prediction: list[int] | None = None, max_draft: int = 8
) -> NgramProposer:
    proposer = NgramProposer(num_rows=3, max_draft=max_draft)
    proposer.start(row_one(prompt, prediction))
    return proposer


def row_one(prompt: list[int], prediction: list[int] | None = None) -> StartedRow:
    return StartedRow(1, prompt, len(prompt), [], SamplingParams(), prediction or [])


def test_a_text_goes_on_as_it_went_on_before() -> None:
    proposer = started([10, 11, 12, 13, 14, 15, 16])
    assert proposer.observe(1, [10]).available == 0
    forecast = proposer.observe(1, [11])
    assert (forecast.available, forecast.evidence) == (8, 2)
    assert proposer.draft([1], [3]) == [[12, 13, 14]]


def test_what_was_foreseen_is_counted_whether_it_was_drafted_or_not() -> None:
    proposer = started([10, 11, 12, 13, 14, 15, 16, 17])
    proposer.observe(1, [10, 11])
    assert proposer.observe(1, [12])[2:] == (1, 1)
    assert proposer.observe(1, [13, 14, 99])[2:] == (2, 3)
    assert proposer.observe(1, [5])[2:] == (0, 0)


def test_the_longest_match_goes_first() -> None:
    proposer = started([1, 2, 3, 4, 50, 9, 9, 3, 4, 60, 1, 2, 3])
    forecast = proposer.observe(1, [4])
    assert forecast.evidence == 4
    assert proposer.draft([1], [1]) == [[50]]


def test_of_equal_matches_the_latest_goes_first() -> None:
    proposer = started([3, 4, 50, 7, 3, 4, 60, 8, 3])
    proposer.observe(1, [4])
    assert proposer.draft([1], [1]) == [[60]]


def test_the_prediction_goes_before_the_prompt_and_ends_where_it_ends() -> None:
    proposer = started([3, 4, 50, 7, 8, 3], prediction=[1, 3, 4, 60, 61])
    assert proposer.observe(1, [4]).available == 2
    assert proposer.draft([1], [8]) == [[60, 61]]
    forecast = proposer.observe(1, [60, 61])
    assert (forecast.hits, forecast.available) == (2, 0)


def test_a_prediction_does_not_run_on_into_the_prompt() -> None:
    proposer = started([5, 6, 7], prediction=[1, 2])
    proposer.observe(1, [1])
    assert proposer.observe(1, [2]).available == 0


def test_a_loop_is_foreseen_beyond_the_end_of_what_is_known() -> None:
    proposer = started([1, 7, 8, 9, 7, 8])
    proposer.observe(1, [9])
    assert proposer.draft([1], [8]) == [[7, 8, 9, 7, 8, 9, 7, 8]]
    assert proposer.observe(1, [7, 8, 9, 7]).hits == 4


def test_a_released_row_foresees_nothing_and_a_new_request_knows_nothing_of_the_old() -> None:
    proposer = started([10, 11, 12, 10])
    proposer.release(1)
    assert proposer.observe(1, [11]) == (0, 0, 0, 0)
    proposer.start(row_one([10]))
    assert proposer.observe(1, [11]).available == 0


def test_a_long_prompt_is_entered_and_found() -> None:
    prompt = [random.Random(4).randrange(150_000) for _ in range(100_000)]
    proposer = started([*prompt, *prompt[-40:-36]], max_draft=20)
    proposer.observe(1, [prompt[-36]])
    assert proposer.draft([1], [20]) == [prompt[-35:-15]]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=20),
)
def test_a_guess_always_follows_a_true_match(
    prompt: list[int], prediction: list[int], steps: list[list[int]]
) -> None:
    proposer = started(prompt, prediction, max_draft=5)
    known = list(prompt)
    for step in steps:
        known += step
        forecast = proposer.observe(1, step)
        draft = proposer.draft([1], [5])[0]
        assert len(draft) == forecast.available
        if not draft:
            continue
        suffix = known[-min(forecast.evidence, LONGEST_MATCH) :]
        assert len(suffix) >= 2
        assert contains(known, suffix, draft) or contains(prediction, suffix, draft)


def contains(text: list[int], suffix: list[int], draft: list[int]) -> bool:
    """Whether the suffix stands somewhere with the draft behind it, a loop going on for ever."""
    for end in range(len(suffix), len(text)):
        if text[end - len(suffix) : end] == suffix:
            behind = text[end:]
            looped = (behind * len(draft))[: len(draft)]
            if looped == draft or behind[: len(draft)] == draft:
                return True
    return False
