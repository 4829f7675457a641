"""GrammarTrial: whether a grammar from anybody can be served, found out in a process of its own.

Owns that process, from its start to its end. A grammar that passed is compiled by every rank beside
its steps, so what a trial rules out is what a rank must never meet: too much work, too much memory,
a crash.
"""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

from cluster.text import trial_process
from cluster.text.grammar import GrammarError
from cluster.text.trial_process import LATE, read_message, write_message

LIMIT_S = 1.0
"""Processor time that one trial may take: a verdict must not depend on how busy the machine is."""
_NICENESS = 3
"""A third of a processor, beside one busy process that wants all of it."""


class TrialLostError(RuntimeError):
    """There is no verdict, by no fault of the grammar."""


class GrammarTrial:
    """Tries grammars one at a time; safe to share between threads."""

    def __init__(self, model_dir: str | Path, limit_s: float = LIMIT_S) -> None:
        self._command = [sys.executable, "-m", trial_process.__name__, str(model_dir), str(limit_s)]
        self._process: subprocess.Popen[bytes] | None = None
        self._busy = threading.Lock()

    def start(self) -> None:
        """Start the process, unless it runs: else the first trial waits for it, about a second."""
        with self._busy:
            self._started()

    def run(self, source: str) -> None:
        """Blocks for as long as a trial may take.

        Raises:
            GrammarError: the grammar is refused. The message may quote it.
            TrialLostError: the processors are too busy, or the process ended, twice.
        """
        with self._busy:
            reason = self._ask(source.encode())
            if reason is None:
                reason = self._ask(source.encode())
        if reason is None or reason == LATE:
            raise TrialLostError
        if reason:
            raise GrammarError(reason)

    def close(self) -> None:
        """End the process, if there is one."""
        with self._busy:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ctrl-C at a terminal is the parent's to act upon. Not a session of its own: Linux
                # gives each the same share (autogroup), and niceness counts within one only.
                process_group=0,
            )
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)
        return self._process

    def _ask(self, source: bytes) -> str | None:
        """None: the process ended, which no grammar is to blame for."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            write_message(process.stdin, source)
        answer = read_message(process.stdout)
        if answer is None:
            self._end()
            return None
        return answer.decode()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.communicate()  # closes its input, which ends it
