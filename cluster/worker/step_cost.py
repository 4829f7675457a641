"""StepCost: what a step takes, by the number of positions it computes.

Owns the measured seconds per step and what follows for sizes nobody measured. Knows no clock: the
seconds are handed in. A step of decodes says more about drafts than a prefill of the same size,
which computes logits for its last position only; so prefills count until there is better.

    positions   1    2    3    4    6    8   12   16 ...     one bucket each, rounded up
    seconds    7.8   -    -   8.1   -    -   9.0   - ...     moving averages; between them: linear

An estimate that is not renewed shrinks slowly: a size that looked too dear is tried again, rarely.
"""

from bisect import bisect_left

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SIZES = [1, 2, 3, *(base << shift for shift in range(16) for base in (4, 6))]
_UNKNOWN_SLOPE = 0.25
"""Beyond the largest size measured: so much of the cost is taken to grow with the positions."""
_SHRINK, _STALE_STEPS = 0.97, 256.0
"""An estimate loses 3 % with every 256 steps in which it is not renewed."""
_OUTLIER = 2.0
_REFRESH = 16
"""Steps between two fits of the curve; a new size is seen at once."""


class StepCost:
    """Moving averages by size, and the curve through them."""

    def __init__(self) -> None:
        self._seconds = np.zeros(len(_SIZES))
        self._positions = np.zeros(len(_SIZES))
        self._count = np.zeros(len(_SIZES), np.int64)
        self._step = np.zeros(len(_SIZES))
        self._decoded = np.zeros(len(_SIZES), np.bool_)
        self._now = 0
        self.version = 0
        """Changes when `seconds` may answer something else."""
        self._sizes: Floats = np.ones(1)
        self._curve: Floats = np.ones(1)

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self._now > 0

    def observe(self, num_positions: int, seconds: float, *, decode: bool) -> None:
        """A step took so long. `decode`: every position of it was sampled from."""
        self._now += 1
        at = min(bisect_left(_SIZES, num_positions), len(_SIZES) - 1)
        if self._decoded[at] and not decode:
            return
        if decode and not self._decoded[at]:
            self._decoded[at], self._count[at] = True, 0
        seen = int(self._count[at])
        weight = max(0.1, 1.0 / (1 + seen))
        if seen:
            seconds = min(seconds, _OUTLIER * float(self._seconds[at]))
        self._seconds[at] += weight * (seconds - self._seconds[at])
        self._positions[at] += weight * (num_positions - self._positions[at])
        self._count[at] += 1
        self._step[at] = self._now
        if seen < 4 or self._now % _REFRESH == 0:
            self._fit()

    def _fit(self) -> None:
        known = self._count > 0
        sizes, order = np.unique(self._positions[known], return_index=True)
        age = self._now - self._step[known][order]
        curve = self._seconds[known][order] * _SHRINK ** (age / _STALE_STEPS)
        self._sizes, self._curve = sizes, np.maximum.accumulate(curve)
        self.version += 1

    def seconds(self, num_positions: npt.NDArray[np.int64]) -> Floats:
        """What steps of these sizes take; never less for more positions."""
        last, top = self._sizes[-1], self._curve[-1]
        beyond = np.maximum(num_positions - last, 0.0) / last
        inside = np.interp(num_positions, self._sizes, self._curve)
        estimate: Floats = inside + top * _UNKNOWN_SLOPE * beyond
        return estimate
