from cluster.batch import StartedRow
from cluster.request import SamplingParams, ThinkingRule
from cluster.worker.row_thoughts import RowThoughts

END, BLANK = 9, 8


def started(row: int, output: list[int], budget: int | None = 2) -> StartedRow:
    rule = ThinkingRule(END, budget, (END, BLANK))
    params = SamplingParams(thinking=rule)
    return StartedRow(row, [1, 2, 3, *output], 3, [1], params)


def forced(rows: RowThoughts, row: int, draft: list[int] | None = None) -> list[int] | None:
    ids = rows.forced([row], [draft or []])
    return None if ids is None else ids.tolist()


def test_a_row_is_forced_when_its_budget_is_used_up() -> None:
    rows = RowThoughts()
    rows.start(started(4, []))
    assert forced(rows, 4) is None
    rows.record([4], [[5]])
    assert forced(rows, 4) is None
    rows.record([4], [[6]])
    assert forced(rows, 4) == [END]
    rows.record([4], [[END]])
    assert forced(rows, 4) == [BLANK]
    rows.record([4], [[BLANK]])
    assert forced(rows, 4) is None


def test_what_is_forced_behind_drafts_depends_on_them() -> None:
    rows = RowThoughts()
    rows.start(started(0, [5]))
    assert forced(rows, 0, [6, END, BLANK, 5]) == [-1, END, BLANK, -1, -1]
    assert forced(rows, 0, [END, 5, 5]) is None
    assert forced(rows, 0) is None


def test_a_row_that_comes_back_goes_on_where_it_was() -> None:
    rows = RowThoughts()
    rows.start(started(1, [5, 6, END]))
    assert forced(rows, 1) == [BLANK]


def test_a_row_s_next_request_inherits_nothing() -> None:
    rows = RowThoughts()
    rows.start(started(2, [5, 6]))
    rows.start(StartedRow(2, [1, 2, 3], 3, [1], SamplingParams()))
    assert forced(rows, 2) is None
    rows.start(started(2, [5, END]))
    assert forced(rows, 2) is None


def test_each_row_is_forced_by_its_own_rule() -> None:
    rows = RowThoughts()
    rows.start(started(0, [5, 6]))
    rows.start(started(1, [5, 6], budget=None))
    rows.start(started(3, [5]))
    ids = rows.forced([3, 0, 1, 2], [[6], [], [5, 5], []])
    assert ids is not None
    assert ids.tolist() == [-1, END, END, -1, -1, -1, -1]
