from hypothesis import given
from hypothesis import strategies as st

from cluster.request import (
    INT64_MAX,
    INT64_MIN,
    EngineRequest,
    FinishReason,
    RequestOutput,
    SamplingParams,
    Usage,
)
from serve_app.choices import ChoiceOutput, Tally, derived_seed, fork

SEEDS = st.integers(INT64_MIN, INT64_MAX)


def request(seed: int = 5) -> EngineRequest:
    return EngineRequest("r", [1, 2, 3], SamplingParams(seed=seed), b"tenant")


@given(seed=SEEDS)
def test_choices_have_one_prompt_and_seeds_of_their_own(seed: int) -> None:
    first, *others = fork(request(seed), 8)
    assert first.prompt_of is None
    assert first.params.seed == seed
    assert {other.prompt_of for other in others} == {first.request_id}
    assert {other.cache_salt for other in others} == {b"tenant"}
    everyone = [first, *others]
    assert len({one.params.seed for one in everyone}) == 8
    assert len({one.request_id for one in everyone}) == 8
    assert {tuple(one.prompt_token_ids) for one in everyone} == {(1, 2, 3)}


def test_the_first_choice_alone_tells_what_the_prompt_is_worth() -> None:
    asked = EngineRequest("r", [1, 2, 3], SamplingParams(prompt_logprobs=2, logprobs=1))
    told = [(one.params.prompt_logprobs, one.params.logprobs) for one in fork(asked, 3)]
    assert told == [(2, 1), (None, 1), (None, 1)]


@given(seed=SEEDS, index=st.integers(0, 127))
def test_a_derived_seed_is_an_int64_and_a_function_of_seed_and_index(seed: int, index: int) -> None:
    assert INT64_MIN <= derived_seed(seed, index) <= INT64_MAX
    assert derived_seed(seed, index) == derived_seed(seed, index)


def test_derived_seeds_never_change_between_releases() -> None:
    assert [derived_seed(7, index) for index in range(3)] == [
        7,
        -3627764540224900128,
        4504606891059362275,
    ]


def test_one_choice_is_the_request_itself() -> None:
    assert fork(request(), 1) == [request()]


def test_a_tally_counts_the_prompt_once_and_every_output() -> None:
    tally = Tally(fork(request(), 2))
    assert tally.total() == Usage(3, 0, 0, 0)
    tally.add(ChoiceOutput(0, RequestOutput("r.0", token_ids=[7, 8])))
    tally.add(ChoiceOutput(1, RequestOutput("r.1", token_ids=[9])))
    assert tally.total() == Usage(3, 3, 0, 0)
    for index, count in enumerate((5, 6)):
        ended = RequestOutput("r", finish_reason=FinishReason.STOP, usage=Usage(3, count, 2, 1))
        tally.add(ChoiceOutput(index, ended))
    assert tally.unfinished == 0
    assert tally.total() == Usage(3, 11, 2, 2)
