"""StepCost: what a step takes, by the number of positions it computes.

Owns the measured seconds per step and what follows for sizes nobody measured. Knows no clock: the
seconds are handed in, of steps that draw from every position.

    positions   1    2    3    4    6    8   12   16 ...     one bucket each, rounded up
    seconds    7.8   -    -   8.1   -    -   9.0   - ...     moving averages; between them: linear

A machine stalls but never hurries, so short measurements count for more than long ones: of the
first few the shortest, later by weight. Were the usual sizes mere averages, those that are rarely
measured would look as cheap. An estimate that is not renewed shrinks, the sooner the fewer steps it
rests on: a size that looked too dear is tried again, rarely.
"""

from bisect import bisect_left

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SIZES = [1, 2, 3, *(base << shift for shift in range(16) for base in (4, 6))]
_UNKNOWN_SLOPE = 0.25
"""Beyond the largest size measured: so much of the cost is taken to grow with the positions."""
_SHRINK, _STALE_STEPS, _FIRST = 0.9, 32.0, 8
"""An estimate from n steps loses 10 % with every 32 n (at most 256) steps without another one."""
_OUTLIER, _LONGER, _SHORTER = 2.0, 0.1, 0.4
"""What a measurement above, or below, the estimate weighs against it."""
_REFRESH = 16
"""Steps between two fits of the curve; a new size is seen at once."""


class StepCost:
    """Moving averages by size, and the curve through them."""

    def __init__(self) -> None:
        self._seconds = np.zeros(len(_SIZES))
        self._positions = np.zeros(len(_SIZES))
        self._count = np.zeros(len(_SIZES), np.int64)
        self._step = np.zeros(len(_SIZES))
        self._now = 0
        self.version = 0
        """Changes when `seconds` may answer something else."""
        self._sizes: Floats = np.ones(1)
        self._curve: Floats = np.ones(1)

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self._now > 0

    def observe(self, num_positions: int, seconds: float) -> None:
        """A step took so long."""
        self._now += 1
        at = min(bisect_left(_SIZES, num_positions), len(_SIZES) - 1)
        seen, known = int(self._count[at]), float(self._seconds[at])
        if seen and (seconds > known or seen >= _FIRST):
            weight = _LONGER if seconds > known else _SHORTER
            seconds = known + weight * (min(seconds, _OUTLIER * known) - known)
        self._seconds[at] = seconds
        weight = max(_LONGER, 1.0 / (1 + seen))
        self._positions[at] += weight * (num_positions - self._positions[at])
        self._count[at] += 1
        self._step[at] = self._now
        if seen < _FIRST or self._now % _REFRESH == 0:
            self._fit()

    def _fit(self) -> None:
        known = self._count > 0
        sizes, order = np.unique(self._positions[known], return_index=True)
        age = self._now - self._step[known][order]
        rests_on = np.minimum(self._count[known][order], _FIRST)
        curve = self._seconds[known][order] * _SHRINK ** (age / (_STALE_STEPS * rests_on))
        self._sizes, self._curve = sizes, np.maximum.accumulate(curve)
        self.version += 1

    def seconds(self, num_positions: npt.NDArray[np.int64]) -> Floats:
        """What steps of these sizes take; never less for more positions."""
        last, top = self._sizes[-1], self._curve[-1]
        beyond = np.maximum(num_positions - last, 0.0) / last
        inside = np.interp(num_positions, self._sizes, self._curve)
        estimate: Floats = inside + top * _UNKNOWN_SLOPE * beyond
        return estimate
