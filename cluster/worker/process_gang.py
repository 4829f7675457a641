"""ProcessGang: ranks as local child processes, for tests and benchmarks; no Ray needed.

Owns their start and their end. A child reads its Launch from standard input, so that the token is
in no argument list and no environment, and dies with its parent.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from cluster.worker.gang import Launch, RankMain, RankSpec

GRACE_S = 1.0
"""How long a rank whose link is closed may take to leave by itself."""
_PR_SET_PDEATHSIG = 1


class ProcessGang:
    """One child process per spec."""

    def __init__(self, main: RankMain, specs: Sequence[RankSpec]) -> None:
        """Start the ranks.

        Raises:
            ValueError: `main` cannot be found by name in another process.
            OSError: the system gives no more processes.
        """
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for spec in specs:
                self._processes[spec.rank] = _start(Launch.of(main, spec))
        except BaseException:
            self.kill(grace_s=0.0)
            raise

    def dead(self) -> dict[int, str]:
        return {
            rank: _end(process.returncode)
            for rank, process in self._processes.items()
            if process.poll() is not None
        }

    def kill(self, grace_s: float = GRACE_S) -> None:
        deadline = time.monotonic() + grace_s
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for process in self._processes.values():
            process.wait()


def _start(launch: Launch) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(os.getpid())],
        stdin=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C at the terminal is the parent's to act upon
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(launch.encode())
    return process


def _end(returncode: int) -> str:
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exited with code {returncode}"


def _child(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == parent:  # else it died before the guard stood
        Launch.decode(sys.stdin.buffer.read()).run()


if __name__ == "__main__":
    _child(int(sys.argv[1]))
