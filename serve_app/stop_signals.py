"""StopSignals: Ctrl-C and SIGTERM, as an interruption while starting and as a question afterwards.

Owns the two handlers. A KeyboardInterrupt can break off a start, which blocks in libraries. But an
exception that comes out of nowhere can also be lost: raised inside a finalizer or a callback of the
interpreter it is printed and forgotten. So whoever runs for long asks `asked` instead.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """One per process; to be used in the main thread."""

    def __init__(self) -> None:
        self.asked = False
        """Whether somebody wants this process to end."""
        self._interrupts = False

    def install(self) -> None:
        """Take the signals, also from a library that took them meanwhile."""
        for number in _NUMBERS:
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """The end has begun: nothing shall interrupt it."""
        self.asked = True
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within it a signal raises KeyboardInterrupt, too."""
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self._interrupts:
            raise KeyboardInterrupt
