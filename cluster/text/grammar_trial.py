"""GrammarTrial: whether a grammar from anybody can be served, found out in a process of its own.

Owns that process: it is started at the first trial, has what processors nobody else wants, within
limits of time and memory, and is ended by the kernel when it exceeds them; the next trial starts
another. Where nothing is left for it, another takes over, which has a share. A grammar
that passed is compiled by every rank beside its steps, so what a trial rules out is what a rank
must never meet: too much work, too much memory, a crash.

    trial   compile | a few random answers, mask by mask | -> passed, or why not
    frames  parent -> child: length, source      child -> parent: length, reason (empty: passed)
"""

import contextlib
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import psutil

from cluster.text.grammar import GrammarCompiler, GrammarError, Matcher
from cluster.text.tokenizer import Tokenizer

LIMIT_S = 2.0
"""Processor time that one trial may take: a verdict must not depend on how busy the machine is."""
OUT_OF_TIME = "it takes more than"
"""How the reason begins for a trial that took more."""
_WAIT = 5
"""The same of waiting, in limits: for whoever waits for the verdict."""
_MEMORY_BYTES = 4 * 2**30
_NICENESS = 10
"""The share of a trial that starves: a tenth, where all processors are wanted."""
_PATIENCE_S = 1.0
"""How long a trial may starve."""
_ANSWERS, _ANSWER_IDS = 4, 48
_LENGTH_BYTES = 4


class GrammarTrial:
    """Tries grammars one at a time; safe to share between threads."""

    def __init__(self, model_dir: str | Path, limit_s: float = LIMIT_S) -> None:
        self._command = [sys.executable, "-m", __name__, str(model_dir), str(limit_s)]
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._busy = threading.Lock()

    def run(self, source: str) -> None:
        """Blocks for as long as a trial may take, and before the first until the process runs.

        Raises:
            GrammarError: the grammar is refused. The message may quote it.
        """
        with self._busy:
            reason = self._ask(source.encode())
        if reason:
            raise GrammarError(reason)

    def close(self) -> None:
        """End the process, if there is one."""
        with self._busy:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C at a terminal is the parent's to act upon
        )
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
        return process

    def _ask(self, source: bytes) -> str:
        process = self._process
        if process is None:
            process = self._start()
        else:
            # A stream's next token waits for a process of any niceness, but never for an idle one.
            os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
        _send(process, source)
        if _starves(process):
            process.kill()
            self._end()
            process = self._start()
            _send(process, source)
        assert process.stdout is not None
        answer = _read(process.stdout)
        if answer is not None:
            return answer.decode()
        ended = self._end()
        timed_out = ended in (-signal.SIGPROF, -signal.SIGALRM)
        return f"{OUT_OF_TIME} {self._limit_s:g} s" if timed_out else "it exceeds the limits"

    def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.communicate()  # closes its input, which ends it
        return process.returncode


def _send(process: subprocess.Popen[bytes], source: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        _write(process.stdin, source)


def _starves(process: subprocess.Popen[bytes]) -> bool:
    """Whether it neither answers within the patience nor got a tenth of a processor meanwhile."""
    assert process.stdout is not None
    begun, answers = _worked_s(process), select.poll()
    answers.register(process.stdout)
    if answers.poll(1000 * _PATIENCE_S):
        return False
    return _worked_s(process) - begun < _PATIENCE_S / 10


def _worked_s(process: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


def _child(model_dir: str, limit_s: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    compiler = GrammarCompiler(Tokenizer(model_dir))
    while (source := _read(sys.stdin.buffer)) is not None:
        _end_after(limit_s)
        reason = _refusal(compiler, source.decode())
        _end_after(0)
        _write(sys.stdout.buffer, reason.encode())


def _end_after(limit_s: float) -> None:
    """The kernel ends this process after so much work, or so much more waiting; 0: it does not."""
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    signal.setitimer(signal.ITIMER_REAL, _WAIT * limit_s)


def _refusal(compiler: GrammarCompiler, source: str) -> str:
    """Why a grammar cannot be served, "" if it can as far as a few answers tell."""
    try:
        begun = compiler.matcher(source)
        for seed in range(_ANSWERS):
            _answer(begun.copy(), random.Random(seed))
    except GrammarError as error:
        return str(error) or "it cannot be followed"
    return ""


def _answer(matcher: Matcher, chance: random.Random) -> None:
    for _ in range(_ANSWER_IDS):
        if matcher.ended:
            return
        matcher.push(_some_id(matcher.mask(), chance))


def _some_id(mask: bytes, chance: random.Random) -> int:
    """An id that may follow: the lowest at or behind a random place."""
    place = chance.randrange(len(mask))
    behind = mask[place:].lstrip(b"\0")
    if not behind:
        behind, place = mask.lstrip(b"\0"), 0
    if not behind:
        raise GrammarError("no id may follow")
    at = len(mask) - len(behind)
    return at * 8 + (behind[0] & -behind[0]).bit_length() - 1


def _write(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(len(message).to_bytes(_LENGTH_BYTES, "big") + message)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes | None:
    """The next message; None at the end."""
    head = pipe.read(_LENGTH_BYTES)
    return pipe.read(int.from_bytes(head, "big")) if len(head) == _LENGTH_BYTES else None


if __name__ == "__main__":
    _child(sys.argv[1], float(sys.argv[2]))
