"""Replies as figures: throughput, waiting times as percentiles, goodput under an objective.

Owns the arithmetic. Times in rows are milliseconds.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from serve_app.bench.http_stream import Reply

PERCENTILES = (50, 90, 99)


class Objective(NamedTuple):
    """What a good request keeps; None asks nothing."""

    ttft_ms: float | None = None
    """To the first text."""
    gap_ms: float | None = None
    """99 of 100 gaps between its events are at most this."""


class Series(NamedTuple):
    """What a plot shows, in milliseconds, unsorted."""

    ttft: list[float]
    gaps: list[float]


def series(replies: Sequence[Reply]) -> Series:
    """Of the requests that ended well."""
    good = [reply for reply in replies if _good(reply)]
    waits = [(reply.times[0] - reply.sent_at) * 1000 for reply in good]
    return Series(waits, [gap for reply in good for gap in _gaps(reply)])


def summary(replies: Sequence[Reply], objective: Objective) -> dict[str, Any]:
    """One object for people and machines; rates over the time from first request to last end.

    `full_tokens_per_s` counts only while every request was between its first and last text.
    """
    good = [reply for reply in replies if _good(reply)]
    failed = [reply.error or "no text came" for reply in replies if not _good(reply)]
    row: dict[str, Any] = {"kind": "serve", "requests": len(replies), "failed": len(failed)}
    if failed:
        row["first_error"] = failed[0]
    if not good:
        return row
    begin, end = min(r.sent_at for r in good), max(r.ended_at for r in good)
    seconds = end - begin
    waits, gaps = series(replies)
    tokens = sum(reply.tokens for reply in good)
    row |= {
        "seconds": round(seconds, 3),
        "prompt_tokens": round(sum(r.prompt_tokens for r in good) / len(good), 1),
        "output_tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 2),
        "full_tokens_per_s": _full_rate(good),
        "requests_per_s": round(len(good) / seconds, 3),
        "ttft_ms": percentiles(waits),
        "gap_ms": percentiles(gaps),
        "request_ms": percentiles([(r.ended_at - r.sent_at) * 1000 for r in good]),
    }
    return row | {"goodput": _goodput(good, objective, seconds, len(replies))}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 (nearest rank), mean and max; empty for no values."""
    if not values:
        return {}
    ordered = sorted(values)
    found = {f"p{percent}": round(rank(ordered, percent), 3) for percent in PERCENTILES}
    mean = sum(ordered) / len(ordered)
    return found | {"mean": round(mean, 3), "max": round(ordered[-1], 3)}


def rank(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` % of all are not above."""
    place = -(-len(ordered) * percent // 100)
    return ordered[max(int(place) - 1, 0)]


def _good(reply: Reply) -> bool:
    return not reply.error and bool(reply.times)


def _gaps(reply: Reply) -> list[float]:
    times = reply.times
    return [(after - before) * 1000 for before, after in itertools.pairwise(times)]


def _full_rate(good: Sequence[Reply]) -> float | None:
    """Tokens a second while all requests stream; None where they never all do."""
    begin = max(reply.times[0] for reply in good)
    end = min(reply.times[-1] for reply in good)
    if end <= begin:
        return None
    events = sum(1 for reply in good for time in reply.times if begin < time <= end)
    told = sum(reply.tokens for reply in good) / sum(len(reply.times) for reply in good)
    return round(events * told / (end - begin), 2)


def _goodput(
    good: Sequence[Reply], objective: Objective, seconds: float, asked: int
) -> dict[str, Any]:
    kept = [reply for reply in good if _keeps(reply, objective)]
    return {
        "slo_ttft_ms": objective.ttft_ms,
        "slo_gap_ms": objective.gap_ms,
        "share": round(len(kept) / asked, 4),
        "requests_per_s": round(len(kept) / seconds, 3),
        "tokens_per_s": round(sum(reply.tokens for reply in kept) / seconds, 2),
    }


def _keeps(reply: Reply, objective: Objective) -> bool:
    wait = (reply.times[0] - reply.sent_at) * 1000
    if objective.ttft_ms is not None and wait > objective.ttft_ms:
        return False
    gaps = sorted(_gaps(reply))
    return objective.gap_ms is None or not gaps or rank(gaps, 99) <= objective.gap_ms
