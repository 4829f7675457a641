"""What the matrix says of its clients, without any of them."""

from datetime import date
from pathlib import Path

import pytest

from tests.ecosystem.outcome import Outcome
from tests.ecosystem.table import COLUMNS, HEADINGS, blocks, cells, summary, write_into

OK = dict.fromkeys(["chat", "reasoning", "reasoning streamed", "too long"], "ok")
GREEN = Outcome("one", "1.0", OK, "as reasoning", "ask it twice")
RED = Outcome("two", "2.0", OK | {"chat": "Error: no"}, "lost")
SILENT = Outcome("three", checks={"run": "exit code 1: no module"})


def test_only_a_client_that_told_nothing_but_ok_is_green() -> None:
    assert [outcome.green for outcome in (GREEN, RED, SILENT, Outcome("four"))] == [
        True,
        False,
        False,
        False,
    ]
    assert summary([GREEN, RED, SILENT]) == "1 of 3 clients green, reasoning visible in 1"


def test_a_row_tells_each_check_and_what_could_not_be_asked() -> None:
    row = dict(zip(HEADINGS, cells(RED), strict=True))
    assert (row["chat"], row["tools"], row["reasoning"]) == ("no", "-", "lost")
    assert row["more"] == "too long: yes"
    assert cells(SILENT)[2:-2] == ["-"] * len(COLUMNS)
    assert cells(SILENT)[-1] == "run: no"


def test_a_table_takes_the_place_of_the_last_one(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    marks = "<!-- client matrix -->{}<!-- end of client matrix -->"
    document.write_text(f"before {marks.format('old')} after")
    for outcomes in ([GREEN, RED], [GREEN]):
        found = blocks(outcomes, date(2026, 1, 2))
        write_into(document, found)
    marked = marks.format(f"\n\n{found['client matrix']}\n\n")
    assert document.read_text() == f"before {marked} after"
    assert "2026-01-02" in found["client matrix"]
    assert found["client notes"] == "- **one**: ask it twice."


def test_a_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("nothing")
    with pytest.raises(ValueError, match="has no marks"):
        write_into(document, blocks([GREEN], date(2026, 1, 2)))
    assert document.read_text() == "nothing"
