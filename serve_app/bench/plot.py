"""Waiting times as a picture: how large a share of first tokens and of gaps came within x ms.

Owns the two formats: a page that needs nothing else (.html), and a .png where matplotlib is
installed. Knows no HTTP.
"""

import html
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serve_app.bench.report import Series

WIDTH, HEIGHT, MARGIN = 640, 300, 48
_POINTS = 400
"""Enough for the eye."""
_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:14px system-ui;margin:2em;max-width:42em}}
svg{{width:100%}}pre{{overflow:auto}}</style>
<h1>{title}</h1>{figures}<pre>{row}</pre>
"""


def check(path: Path | None) -> None:
    """Raises ValueError: nothing can be drawn under this name; said before anything is measured."""
    if path is None or path.suffix == ".html":
        return
    if path.suffix != ".png":
        raise ValueError(f"--plot {path}: the name must end in .html or .png")
    if find_spec("matplotlib") is None:
        raise ValueError("--plot .png needs matplotlib (pip install 'deeprequest[plot]'); or .html")


def write(path: Path, series: Series, row: dict[str, Any]) -> None:
    """The picture, and on a page the row below it."""
    curves = {
        "Time to first token, ms": shares(series.ttft),
        "Gap between tokens, ms": shares(series.gaps),
    }
    if path.suffix == ".png":
        return _png(path, curves)
    figures = "".join(svg(title, points) for title, points in curves.items())
    told = html.escape(json.dumps(row, indent=2))
    path.write_text(_PAGE.format(title="deeprequest bench serve", figures=figures, row=told))


def shares(values: Sequence[float]) -> list[tuple[float, float]]:
    """(x, share of values that are at most x), thinned."""
    ordered = sorted(values)
    places = sorted({round(i * (len(ordered) - 1) / _POINTS) for i in range(_POINTS + 1)})
    return [(ordered[place], (place + 1) / len(ordered)) for place in places if ordered]


def svg(title: str, points: Sequence[tuple[float, float]]) -> str:
    """One curve with its axes; the x axis begins at 0."""
    if not points:
        return ""
    largest = points[-1][0] or 1.0

    def at(x: float, share: float) -> str:
        right = MARGIN + x / largest * (WIDTH - 2 * MARGIN)
        return f"{right:.1f},{HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN):.1f}"

    grid = []
    for step in range(5):
        x, share = largest * step / 4, step / 4
        left, bottom = at(0, share).split(","), at(x, 0).split(",")
        grid.append(f'<path d="M{at(0, share)}L{at(largest, share)}" stroke="#ddd"/>')
        grid.append(f'<text x="4" y="{left[1]}" font-size="11">{share:.0%}</text>')
        grid.append(
            f'<text x="{bottom[0]}" y="{HEIGHT - MARGIN + 16}" font-size="11" '
            f'text-anchor="middle">{x:,.4g}</text>'
        )
    line = " ".join(at(x, share) for x, share in points)
    curve = f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="2"/>'
    heading = f'<text x="{MARGIN}" y="24" font-size="14">{html.escape(title)}</text>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}">{heading}{"".join(grid)}{curve}</svg>'


def _png(path: Path, curves: dict[str, list[tuple[float, float]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        axes.plot([x for x, _ in points], [share for _, share in points])
        axes.set(title=title, ylim=(0, 1), xlim=(0, None))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
