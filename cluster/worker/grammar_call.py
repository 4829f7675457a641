"""GrammarCall: every rank compiles a grammar before any row needs it.

Owns the frame by which rank 0 asks for a grammar, and the answers by which it knows that all ranks
have it. What a rank does with it is its worker's matter; a grammar that it could not compile is
answered too, and told by the row that needs it. Knows no rows and no grammar's words.

    rank 0 -> rank r   0xC1 | number, uint32 | source        (no msgpack begins with 0xC1)
    rank r -> rank 0   number, uint32                        once it is compiled, or refused
"""

import contextlib
import struct
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from cluster.worker.channel import Channel, ChannelClosedError

_MARK = b"\xc1"
_NUMBER = struct.Struct(">I")
_SOURCE_AT = len(_MARK) + _NUMBER.size


class Compiles(Protocol):
    """What a call needs of `cluster.worker.worker.Worker`."""

    def compile_grammar(self, source: str, done: Callable[[], None], /) -> None:
        """Begin; `done` is called by any thread, at once if there is nothing to do."""


class GrammarCall:
    """Rank 0's side. Used by one thread, the only one that reads from the channels."""

    def __init__(
        self, worker: Compiles, tell: Callable[[bytes], None], channels: Sequence[Channel]
    ) -> None:
        """`tell`: sends a frame to all other ranks; their answers come by `channels`."""
        self._worker = worker
        self._tell = tell
        self._channels = channels
        self._number = 0
        self._missing: Counter[int] = Counter()
        self._own: deque[int] = deque()

    def begin(self, source: str) -> int:
        """Ask all ranks for a grammar; the number to ask `is_done` with.

        Raises:
            ChannelClosedError: a rank is gone.
        """
        self.collect()  # or a rank might wait for us to read, and we for it
        number = self._number = (self._number + 1) % 2**32
        self._missing[number] = 1 + len(self._channels)
        self._tell(_MARK + _NUMBER.pack(number) + source.encode())
        self._worker.compile_grammar(source, lambda: self._own.append(number))
        return number

    def collect(self) -> None:
        """Take the answers that have come. Raises ChannelClosedError when a rank is gone."""
        while self._own:
            self._answered(self._own.popleft())
        for channel in self._channels:
            while channel.poll(0.0):
                self._answered(*_NUMBER.unpack(channel.receive()))

    def is_done(self, number: int) -> bool:
        """Whether every rank had answered when answers were last collected."""
        return number not in self._missing

    def _answered(self, number: int) -> None:
        self._missing[number] -= 1
        if not self._missing[number]:
            del self._missing[number]


def answered_grammar(frame: bytes, worker: Compiles, channel: Channel) -> bool:
    """Another rank's side: False if the frame is about something else."""
    if not frame.startswith(_MARK):
        return False
    number = frame[len(_MARK) : _SOURCE_AT]

    def answer() -> None:
        with contextlib.suppress(ChannelClosedError):  # whoever reads next finds out
            channel.send(number)

    worker.compile_grammar(frame[_SOURCE_AT:].decode(), answer)
    return True
