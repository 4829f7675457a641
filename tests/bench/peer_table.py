"""The rows of all engines and rounds as medians, and as a table with ratios.

Owns the columns. Knows no engine, save that the first name of each kind (16-bit, 8-bit) is ours.
"""

import statistics
import sys

from rich.console import Console
from rich.table import Table

from serve_app.bench.workload import Row

Rounds = dict[str, list[list[Row]]]
"""engine -> round -> rows."""
Medians = dict[str, dict[str, float]]
"""engine -> column -> figure."""

_FIGURES = ("tokens_per_s", "ms", "mb", "start_s")
LESS_IS_MORE = ("ttft", "memory", "load")


def medians(rounds: Rounds) -> Medians:
    """One figure per engine and column, over the rounds that brought it."""
    found: Medians = {}
    for engine, runs in rounds.items():
        columns: dict[str, list[float]] = {}
        for row in (row for run in runs for row in run):
            columns.setdefault(column(row), []).append(figure(row))
        found[engine] = {name: statistics.median(values) for name, values in columns.items()}
    return found


def column(row: Row) -> str:
    """`decode 8`, `prefill 2048`, `memory` …"""
    of = next((row[name] for name in ("batch", "length", "prompt_len", "rank") if name in row), "")
    return f"{row['kind']} {of}".strip()


def figure(row: Row) -> float:
    """The one number of a row that is compared."""
    return float(next(row[name] for name in _FIGURES if name in row))


def ratio(found: Medians, kinds: dict[str, bool], engine: str, name: str) -> float | None:
    """How many times better this engine is in a column than the best peer of its kind.

    Peers are all engines not named like ours; None where there is none to compare with.
    """
    ours = next(iter(found)).split()[0]
    rivals = [
        figures[name]
        for other, figures in found.items()
        if not other.startswith(ours) and kinds[other] == kinds[engine] and name in figures
    ]
    if not rivals or name not in found[engine] or not engine.startswith(ours):
        return None
    if name.startswith(LESS_IS_MORE):
        return min(rivals) / found[engine][name]
    return found[engine][name] / max(rivals)


def print_table(found: Medians, kinds: dict[str, bool], title: str) -> None:
    """To standard error; in brackets, ours over the best peer of the same kind."""
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    table = Table("engine", *names, title=f"{title}; tokens/s, ms (ttft), MB, s (load)")
    for engine, figures in found.items():
        cells = []
        for name in names:
            times = ratio(found, kinds, engine, name)
            cell = f"{figures[name]:,.1f}" if name in figures else "-"
            cells.append(cell if times is None else f"{cell} ({times:.2f}x)")
        table.add_row(engine, *cells)
    Console(file=sys.stderr, width=200).print(table)
