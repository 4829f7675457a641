"""Formats: what every parser of dates takes, and what rules nothing out."""

import re
from datetime import date, datetime, time
from typing import Any

import pytest

from cluster.text.schema_formats import held_formats


def allows(name: str, text: str) -> bool:
    return (
        re.search(str(held_formats({"type": "string", "format": name})["pattern"]), text)
        is not None
    )


DAYS = [
    f"{year:04}-{month:02}-{day:02}"
    for year in (0, 1, 4, 100, 400, 1900, 2000, 2023, 2024, 2100, 9999)
    for month in range(14)
    for day in (0, 1, 28, 29, 30, 31, 32)
]


def is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def test_the_days_are_those_of_the_calendar() -> None:
    assert [day for day in DAYS if allows("date", day)] == [day for day in DAYS if is_day(day)]


@pytest.mark.parametrize("text", ["00:00:00Z", "23:59:59+23:59", "09:08:07.123456-00:30"])
def test_times_are_read_by_their_parser(text: str) -> None:
    assert allows("time", text)
    time.fromisoformat(text)
    assert allows("date-time", f"2024-02-29T{text}")
    datetime.fromisoformat(f"2024-02-29T{text}")


@pytest.mark.parametrize(
    "text", ["23:59:60Z", "24:00:00Z", "10:00:00", "10:00:00z", "10:00:00+24:00", "1:00:00Z"]
)
def test_times_that_not_every_parser_reads_are_not_said(text: str) -> None:
    assert not allows("time", text)
    assert not allows("date-time", f"2024-01-01T{text}")


@pytest.mark.parametrize("name", ["int32", "double", "password", "binary", "path", "phone"])
def test_notes_to_a_reader_are_left_out(name: str) -> None:
    assert held_formats({"type": "string", "format": name}) == {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"format": "email"},
        {"format": "regex"},
        {"format": 5},
        {"format": "date", "pattern": "^2"},
        {"properties": {"format": {"type": "string"}}},
    ],
    ids=str,
)
def test_other_schemas_stay_as_they_are(schema: dict[str, Any]) -> None:
    assert held_formats(schema) is schema
