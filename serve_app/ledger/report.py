"""Sums of usage as rows, for people and programs: dictionaries and CSV.

Owns the columns' names and order, and that money is told exactly.
"""

import csv
import io
from collections.abc import Iterable
from typing import Any

from serve_app.ledger.sums import COUNTS, Dimension, UsageSum
from serve_app.tenancy.price import amount


def columns(by: Iterable[Dimension]) -> tuple[str, ...]:
    """Names of a row's values, in order."""
    return (*by, "requests", *COUNTS, "cost", "currency")


def row(one: UsageSum, by: Iterable[Dimension]) -> dict[str, Any]:
    """One sum. `cost` is a decimal string; `cost_micros` the same in millionths."""
    told: dict[str, Any] = {name: getattr(one, name) for name in by}
    if "day" in told:
        told["day"] = str(one.day)
    counts = {name: getattr(one, name) for name in ("requests", *COUNTS)}
    cost = amount(one.cost_micros, one.currency).partition(" ")[0]
    return told | counts | {"cost": cost, "currency": one.currency or None}


def csv_text(sums: Iterable[UsageSum], by: tuple[Dimension, ...]) -> str:
    """A header and a line for each sum."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(by), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row(one, by) for one in sums)
    return out.getvalue()
