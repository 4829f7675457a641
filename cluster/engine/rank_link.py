"""RankLink: a rank's line to its replica, and the conscience of its process.

Owns the end of the process: it leaves when the replica is gone, when its own step is too old, or
when it failed, and says why while it can. A thread of its own beats and watches, for the main
thread may be stuck in a collective. Knows no torch and no scheduler.
"""

import contextlib
import logging
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

from cluster.engine.core_messages import (
    Failed,
    FromRank,
    Heartbeat,
    Hello,
    Start,
    ToRank,
    decode_to_rank,
    encode,
)
from cluster.worker.channel import ChannelClosedError, dial
from cluster.worker.gang import RankSpec

BEATS_PER_TIMEOUT = 4
MAX_BEAT_S = 1.0

_log = logging.getLogger(__name__)


def beat_period(step_timeout_s: float) -> float:
    """Seconds between two heartbeats of a rank."""
    return min(MAX_BEAT_S, step_timeout_s / BEATS_PER_TIMEOUT)


class RankLink:
    """Made once per rank process; `busy` marks what must not take longer than a step may."""

    def __init__(self, spec: RankSpec) -> None:
        """Dial the replica.

        Raises:
            ChannelClosedError, ChannelTimeoutError: it is not there.
        """
        self._spec = spec
        self._channel = dial(spec.replica_address)
        self._is_busy = False
        self._num_busy = 0

    @property
    def local_host(self) -> str:
        """This node's address as the replica knows it (TCP only)."""
        return self._channel.local_host

    def greet(self, meeting: Start | None) -> Start:
        """Introduce this rank and start the watch; where the ranks meet.

        Raises:
            ChannelClosedError: the replica is gone, or does not know the token.
        """
        spec = self._spec
        hello = Hello(spec.token, spec.rank, os.getpid(), socket.gethostname(), meeting)
        self.send(hello)
        threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()
        start = self.receive()
        if not isinstance(start, Start):
            raise ChannelClosedError("the replica did not begin with Start")
        return start

    def send(self, message: FromRank) -> None:
        """Raises ChannelClosedError when the replica is gone."""
        self._channel.send(encode(message))

    def receive(self) -> ToRank:
        """The next message; waits for it. Raises ChannelClosedError when the replica is gone."""
        return decode_to_rank(self._channel.receive())

    def pending(self, timeout_s: float = 0.0) -> bool:
        """Whether `receive` has something to do, or will within the time."""
        return self._channel.poll(timeout_s)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """What is inside ends this process if it takes longer than step_timeout_s."""
        self._num_busy += 1
        self._is_busy = True
        yield
        self._is_busy = False

    def fail(self, reason: str) -> NoReturn:
        """Say why, and end this process at once, whatever its other threads are doing."""
        with contextlib.suppress(ChannelClosedError):
            self.send(Failed(reason))
        _exit(1)

    def _watch(self) -> None:
        """Counts its own ticks, not time: a process that was frozen must not accuse itself."""
        limit = self._spec.config.step_timeout_s
        period = beat_period(limit)
        watched, ticks = 0, 0
        while not self._channel.hung_up(period):
            same = self._is_busy and self._num_busy == watched
            watched, ticks = self._num_busy, ticks + 1 if same else 0
            if ticks * period > limit:
                reason = f"step {watched} is older than {limit:g} s: a rank hangs"
                _log.error("rank %d: %s", self._spec.rank, reason)
                self.fail(reason)
            with contextlib.suppress(ChannelClosedError):
                self.send(Heartbeat())
        if self._spec.directory is not None:  # a killed replica cannot remove it any more
            shutil.rmtree(self._spec.directory, ignore_errors=True)
        _exit(0)


def _exit(code: int) -> NoReturn:
    """Not sys.exit: collectives of a broken group would hang in their destructors."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
