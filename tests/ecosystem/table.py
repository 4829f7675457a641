"""The matrix as a table: on a terminal, and as Markdown between marks of a document.

Owns the columns. Knows outcomes, not how they came about.
"""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from rich.table import Table

from tests.ecosystem.outcome import Outcome

COLUMNS = {
    "chat": "chat",
    "stream": "streamed",
    "usage": "usage",
    "json schema": "JSON schema",
    "tool call": "tools",
    "wrong key": "wrong key",
    "turns": "turns",
}
"""check -> heading; reasoning has a column of its own, all other checks share the last."""
REASONING = ("reasoning", "reasoning streamed")
HEADINGS = ("client", "version", *COLUMNS.values(), "reasoning", "more")


def cells(outcome: Outcome) -> list[str]:
    """One row: "yes", "-" for a check that the client cannot be put to, "no"."""
    more = [name for name in outcome.checks if name not in COLUMNS and name not in REASONING]
    others = ", ".join(f"{name}: {_mark(outcome.checks[name])}" for name in more)
    marks = [_mark(outcome.checks.get(name)) for name in COLUMNS]
    return [outcome.client, outcome.version, *marks, outcome.reasoning, others]


def _mark(told: str | None) -> str:
    if told is None:
        return "-"
    return "yes" if told == "ok" else "no"


def terminal(outcomes: Sequence[Outcome]) -> Table:
    table = Table(*HEADINGS, title=summary(outcomes))
    for outcome in outcomes:
        table.add_row(*cells(outcome), style="" if outcome.green else "red")
    return table


def summary(outcomes: Sequence[Outcome]) -> str:
    green = sum(outcome.green for outcome in outcomes)
    seen = sum(outcome.sees_thoughts for outcome in outcomes)
    return f"{green} of {len(outcomes)} clients green, reasoning visible in {seen}"


def blocks(outcomes: Sequence[Outcome], on: date) -> dict[str, str]:
    """By the name that marks its place in a document: the table, and a list of what users should
    know."""
    rows = [list(HEADINGS), ["---"] * len(HEADINGS), *(cells(outcome) for outcome in outcomes)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    notes = [f"- **{outcome.client}**: {outcome.note}." for outcome in outcomes if outcome.note]
    return {
        "client matrix": "\n".join([f"{summary(outcomes)}, {on:%Y-%m-%d}:", "", *lines]),
        "client notes": "\n".join(notes),
    }


def write_into(document: Path, found: dict[str, str]) -> None:
    """Put each block between its two marks, `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
        ValueError: the document has marks for none of them.
    """
    text = document.read_text()
    marks = {f"<!-- {name} -->": f"<!-- end of {name} -->" for name in found}
    if not any(begin in text for begin in marks):
        raise ValueError(f"{document} has no marks such as {next(iter(marks))}")
    for (begin, end), block in zip(marks.items(), found.values(), strict=True):
        if begin in text:
            head, rest = text.split(begin, 1)
            text = f"{head}{begin}\n\n{block}\n\n{end}{rest.split(end, 1)[1]}"
    document.write_text(text)
