"""Promises in plain Python: when whom the queue has no room for is told to come back.

Written from what scripts/promise.lua says it does, for the oracle.
"""

import dataclasses
from collections import Counter

SECOND = 1_000_000
SOONEST, LONGEST, EARLY, LATE = SECOND, 110 * SECOND, SECOND // 4, 5 * SECOND
LAPSE = 60 * SECOND
WINDOW = 8 * SECOND


@dataclasses.dataclass
class Line:
    """One tenant's in one class."""

    last: int = 0
    owed: int = 0
    out: int = 0
    show: int = 100
    slow: int = 110
    judged: int = 0
    """Windows before this one were."""
    counts: Counter[tuple[str, int]] = dataclasses.field(default_factory=Counter)
    """made, kept and broken, by window of the time promised"""

    def count(self, kind: str, due: int, now: int) -> None:
        if due + LATE >= now:
            self.counts[kind, due // WINDOW] += 1

    def judge(self, now: int) -> None:
        over = max(0, now - LATE) // WINDOW
        for window in sorted({window for _, window in self.counts}):
            if window < over:
                made, kept, broken = (self.counts.pop((k, window), 0) for k in "mkb")
                if made:
                    came = min(made, kept + broken)
                    self.show = max(10, (3 * self.show * made + 100 * came) // (4 * made))
                    many = broken * 20 > came
                    self.slow = (
                        min(400, self.slow * 5 // 4)
                        if many
                        else max(110, self.slow - self.slow // 16)
                    )
        self.judged = max(self.judged, over)


class Promises:
    """All lines of a pool, and what is promised to whom."""

    def __init__(self) -> None:
        self.lines: dict[tuple[int, str], Line] = {}
        self.dues: dict[str, set[int]] = {}
        self.latest = 0

    def known(self, now: int) -> bool:
        return self.latest + LAPSE > now

    def line(self, whose: tuple[int, str], now: int) -> Line:
        """A copy, until it is kept."""
        held = self.lines.get(whose, Line())
        line = dataclasses.replace(held, counts=held.counts.copy())
        line.judge(now)
        return line

    def take_up(self, mark: str, now: int) -> int | None:
        dues = {due for due in self.dues.pop(mark, set()) if due + LAPSE > now}
        self.dues[mark] = dues
        if not dues or min(dues) > now + EARLY:
            return None
        due = min(dues)
        dues.remove(due)
        return due

    def promise(self, line: Line, mark: str, place: int, lead: int, broken: bool, now: int) -> int:
        step = max(1, place * line.slow * line.show // 10_000)
        behind = max(line.last, now + SOONEST) + step
        owed = max(line.owed, now + SOONEST) + step
        due = max(owed if broken else behind, now + lead)
        if due > now + LONGEST:
            return LONGEST // 1000
        line.last, line.out, self.latest = behind, max(line.out, due), max(self.latest, due)
        if broken:
            line.owed = owed
        line.count("m", due, now)
        if mark:
            self.dues.setdefault(mark, set()).add(due)
        return -(-(due - now) // 1000)
