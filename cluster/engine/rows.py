"""Rows: the slots of the workers' persistent batch, and who is in them.

Owns which row is free, which row a request has, and which rows the next frame must release. Knows
no queues and no blocks. The lowest free row is given first, so that equal calls give equal frames.
"""

import heapq
from collections.abc import Iterable

from cluster.engine.request import Request


class Rows:
    """All rows; a request in one carries its number in `request.row`, otherwise -1."""

    def __init__(self, num_rows: int) -> None:
        self._owners: list[Request | None] = [None] * num_rows
        self._free = list(range(num_rows))
        self._released: list[int] = []

    @property
    def any_free(self) -> bool:
        return bool(self._free)

    @property
    def any_released(self) -> bool:
        """Whether the workers have yet to be told that a row is free."""
        return bool(self._released)

    def enter(self, request: Request) -> None:
        """Raises IndexError when no row is free."""
        request.row = heapq.heappop(self._free)
        self._owners[request.row] = request

    def leave(self, request: Request) -> None:
        self._owners[request.row] = None
        heapq.heappush(self._free, request.row)
        self._released.append(request.row)
        request.row = -1

    def take_released(self) -> list[int]:
        """What the frame that is being planned must release, told once."""
        released, self._released = self._released, []
        return released

    def check(self, owners: Iterable[Request]) -> None:
        """Raises RuntimeError unless exactly `owners` are in rows, each where it thinks."""
        in_rows = {request.row: request for request in owners}
        free = set(self._free)
        for row, owner in enumerate(self._owners):
            if in_rows.get(row) is not owner or (row in free) != (owner is None):
                raise RuntimeError(f"row {row} is not where the books say")
