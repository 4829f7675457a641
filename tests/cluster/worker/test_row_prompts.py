import numpy as np

from cluster.batch import ScheduledRow, StartedRow
from cluster.request import SamplingParams
from cluster.worker.row_prompts import Judged, RowPrompts

KNOWN = np.arange(40, dtype=np.int32).reshape(4, 10)
"""Row r knows 10 r, 10 r + 1, ..."""


def started(row: int, num_prompt: int, named: int | None) -> StartedRow:
    params = SamplingParams(prompt_logprobs=named)
    return StartedRow(row, [7] * 8, num_prompt, [1], params)


def told(found: Judged | None) -> list[tuple[int, int, int, int]]:
    """(row, behind, token id, count) of each."""
    if found is None:
        return []
    columns = (found.rows, found.behind.tolist(), found.token_ids.tolist(), found.counts.tolist())
    return list(zip(*columns, strict=True))


def test_every_token_of_a_prompt_but_the_first_is_judged_once_however_it_is_cut() -> None:
    rows = RowPrompts()
    rows.start(started(1, 5, 3))
    first = rows.judged([ScheduledRow(1, 0, 2, False)], np.array([4]), KNOWN)
    assert told(first) == [(1, 4, 11, 3), (1, 5, 12, 3)]
    then = rows.judged([ScheduledRow(1, 2, 3, True)], np.array([0]), KNOWN)
    assert told(then) == [(1, 0, 13, 3), (1, 1, 14, 3)]
    assert rows.judged([ScheduledRow(1, 5, 1, True)], np.array([0]), KNOWN) is None


def test_rows_that_do_not_ask_are_left_out() -> None:
    rows = RowPrompts()
    rows.start(started(0, 4, None))
    assert rows.judged([ScheduledRow(0, 0, 4, True)], np.array([0]), KNOWN) is None
    rows.start(started(2, 2, 0))
    shares = [ScheduledRow(0, 0, 4, True), ScheduledRow(2, 0, 2, True)]
    assert told(rows.judged(shares, np.array([0, 4]), KNOWN)) == [(2, 4, 21, 0)]
    rows.release(2)
    assert rows.judged(shares, np.array([0, 4]), KNOWN) is None


def test_what_was_generated_before_a_preemption_is_not_judged() -> None:
    rows = RowPrompts()
    rows.start(started(3, 3, 1))
    found = rows.judged([ScheduledRow(3, 0, 6, True)], np.array([0]), KNOWN)
    assert told(found) == [(3, 0, 31, 1), (3, 1, 32, 1)]
