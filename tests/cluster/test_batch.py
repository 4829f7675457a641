"""The frames between scheduler and ranks: what goes in comes out, the rest is refused."""

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from cluster.batch import (
    AppendedRow,
    ScheduledRow,
    SchedulerOutput,
    StartedRow,
    decode_scheduler_output,
    encode,
)
from cluster.request import SamplingParams

ids = st.lists(st.integers(0, 2**31 - 1), max_size=5)
rows = st.integers(0, 255)
params = st.builds(
    SamplingParams, seed=st.integers(-(2**63), 2**63 - 1), temperature=st.floats(0.0, 2.0)
)
frames = st.builds(
    SchedulerOutput,
    step=st.integers(0, 2**40),
    released=st.lists(rows, max_size=3),
    started=st.lists(
        st.builds(StartedRow, rows, ids, st.integers(1, 9), ids, params, ids), max_size=3
    ),
    appended=st.lists(st.builds(AppendedRow, rows, ids), max_size=3),
    scheduled=st.lists(
        st.builds(ScheduledRow, rows, st.integers(0, 9), st.integers(1, 9), st.booleans(), ids),
        max_size=3,
    ),
)


@settings(deadline=None, max_examples=100)
@given(frames)
def test_a_scheduler_frame_survives_the_wire(frame: SchedulerOutput) -> None:
    assert decode_scheduler_output(encode(frame)) == frame
    assert decode_scheduler_output(memoryview(encode(frame))) == frame


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_noise_is_a_decode_error_and_nothing_else(noise: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_scheduler_output(noise)


@settings(deadline=None, max_examples=50)
@given(frames, st.data())
def test_a_cut_frame_is_a_decode_error(frame: SchedulerOutput, data: st.DataObject) -> None:
    whole = encode(frame)
    with pytest.raises(msgspec.DecodeError):
        decode_scheduler_output(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_the_tokens_of_a_step_are_the_sum_of_its_shares() -> None:
    scheduled = [ScheduledRow(0, 5, 1, True), ScheduledRow(3, 0, 7, False)]
    assert SchedulerOutput(1, [], [], [], scheduled).total_tokens == 8
    assert SchedulerOutput(1, [2], [], [], []).total_tokens == 0
