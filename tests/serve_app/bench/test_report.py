"""Replies as figures."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.bench.http_stream import Reply
from serve_app.bench.report import Objective, percentiles, rank, summary


def reply(*times: float, sent: float = 0.0, error: str = "") -> Reply:
    made = Reply()
    made.sent_at, made.ended_at, made.error = sent, times[-1] if times else sent, error
    made.times.extend(times)
    made.usage = {"prompt_tokens": 7, "completion_tokens": len(times)}
    return made


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([50, 90, 99]))
def test_so_many_percent_are_at_most_the_percentile(values: list[float], percent: int) -> None:
    found = rank(sorted(values), percent)
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


def test_percentiles_of_nothing_are_none() -> None:
    assert percentiles([]) == {}


def test_throughput_counts_from_the_first_request_to_the_last_end() -> None:
    row = summary([reply(1.0, 2.0, 3.0), reply(2.0, 3.0, 5.0)], Objective())
    assert row["output_tokens"] == 6
    assert row["tokens_per_s"] == pytest.approx(6 / 5)
    assert row["ttft_ms"]["p50"] == 1000.0
    assert row["gap_ms"]["max"] == 2000.0
    assert row["full_tokens_per_s"] == pytest.approx(2 / 1.0)


def test_goodput_is_what_keeps_both_limits() -> None:
    slow_start, slow_gap = reply(3.0, 3.1), reply(0.5, 2.5)
    row = summary([reply(0.5, 0.6), slow_start, slow_gap], Objective(1000.0, 500.0))
    assert row["goodput"]["share"] == pytest.approx(1 / 3, abs=1e-4)


def test_a_failed_request_is_told_and_counts_in_no_rate() -> None:
    row = summary([reply(1.0, 2.0), reply(error="status 429: later")], Objective())
    assert (row["requests"], row["failed"], row["first_error"]) == (2, 1, "status 429: later")
    assert row["output_tokens"] == 2


def test_nothing_but_failures_still_makes_a_row() -> None:
    assert summary([reply(error="refused")], Objective())["failed"] == 1
