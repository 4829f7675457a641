"""The process in which grammars from anybody are tried: what ruins it ruins nothing else.

Owns the limits of one trial. Each is a fork of this process, which has read the vocabulary already:
ended by the kernel when it exceeds them, at no cost to the next. At first it has what processors
nobody else wants, so that no stream waits for it; where nothing is left, another takes over, which
has a share. Knows nothing of who asks.

    trial   compile | a few random answers, mask by mask | -> passed, or why not
    frames  in: length, source      out: length, reason (empty: passed)
"""

import contextlib
import os
import random
import resource
import select
import signal
import sys
import time
from typing import IO

import psutil

from cluster.text.grammar import GrammarCompiler, GrammarError, Matcher
from cluster.text.tokenizer import Tokenizer

OUT_OF_TIME = "it takes more than"
"""How the reason begins for a trial that took more."""
LATE = "no verdict"
"""In place of a reason: the processors were too busy for one."""
_WAIT = 5
"""How many times its limit a trial may last, where the processors are busy."""
_MEMORY_BYTES = 4 * 2**30
_PATIENCE_S = 0.25
"""How long a trial may starve,"""
_FED = 0.25
"""which it does with less than this share of a processor."""
_ANSWERS, _ANSWER_IDS = 4, 48
_LENGTH_BYTES = 4


def write_message(pipe: IO[bytes], message: bytes) -> None:
    """Raises BrokenPipeError when the reader is gone."""
    pipe.write(len(message).to_bytes(_LENGTH_BYTES, "big") + message)
    pipe.flush()


def read_message(pipe: IO[bytes]) -> bytes | None:
    """The next message; None at the end."""
    head = pipe.read(_LENGTH_BYTES)
    return pipe.read(int.from_bytes(head, "big")) if len(head) == _LENGTH_BYTES else None


def serve(model_dir: str, limit_s: float) -> None:
    """Answer grammars from standard input until its end."""
    compiler = GrammarCompiler(Tokenizer(model_dir))
    with contextlib.suppress(BrokenPipeError):
        while (source := read_message(sys.stdin.buffer)) is not None:
            reason = verdict(compiler, source.decode(), limit_s)
            write_message(sys.stdout.buffer, reason.encode())


def verdict(compiler: GrammarCompiler, source: str, limit_s: float) -> str:
    """Why a grammar cannot be served, "" if it can; `limit_s` of processor time are granted."""
    trial = _Fork(compiler, source, limit_s, idle=True)
    if trial.starves():
        trial.end()
        trial = _Fork(compiler, source, limit_s, idle=False)
    return trial.verdict()


class _Fork:
    """A trial of one grammar."""

    def __init__(
        self, compiler: GrammarCompiler, source: str, limit_s: float, *, idle: bool
    ) -> None:
        self._limit_s = limit_s
        self._answer, answering = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            _try(compiler, source, answering, limit_s, idle)
        os.close(answering)
        self._until = time.monotonic() + _WAIT * limit_s

    def starves(self) -> bool:
        """Waits for the answer; True as soon as there was too little processor time for it."""
        worked = 0.0
        while not self._answers(_PATIENCE_S):
            before, worked = worked, _worked_s(self._pid)
            if worked - before < _FED * _PATIENCE_S:
                return True
        return False

    def verdict(self) -> str:
        """The answer; waits for it."""
        late = not self._answers(self._until - time.monotonic())
        if late:
            os.kill(self._pid, signal.SIGKILL)
        with open(self._answer, "rb") as pipe:
            reason = pipe.read().decode()
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if late:
            return LATE
        if status == -signal.SIGPROF:
            return f"{OUT_OF_TIME} {self._limit_s:g} s"
        return reason if status == 0 else "it exceeds the limits"

    def end(self) -> None:
        """Nobody wants its answer any more."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._answer)

    def _answers(self, timeout_s: float) -> bool:
        """Whether it has answered, or ended, within the time."""
        poll = select.poll()
        poll.register(self._answer)
        return bool(poll.poll(max(0.0, 1000 * timeout_s)))


def _try(
    compiler: GrammarCompiler, source: str, answering: int, limit_s: float, idle: bool
) -> None:
    """What a fork does; it never returns. Its status says whether the answer is one."""
    status = 1
    try:
        for inherited in (sys.stdin.fileno(), sys.stdout.fileno()):
            os.close(inherited)  # their ends tell others that the process which forked is gone
        if idle:
            with contextlib.suppress(OSError):  # some sandboxes know one policy only
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        with open(answering, "wb") as pipe:
            pipe.write(_refusal(compiler, source).encode())
        status = 0
    finally:
        os._exit(status)


def _worked_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _refusal(compiler: GrammarCompiler, source: str) -> str:
    """Why a grammar cannot be served, "" if it can as far as a few answers tell."""
    try:
        begun = compiler.matcher(source)
        for seed in range(_ANSWERS):
            _follow_some_answer(begun.copy(), random.Random(seed))
    except GrammarError as error:
        return str(error) or "it cannot be followed"
    return ""


def _follow_some_answer(matcher: Matcher, chance: random.Random) -> None:
    for _ in range(_ANSWER_IDS):
        if matcher.ended:
            return
        matcher.push(some_id(matcher.mask(), chance))


def some_id(mask: bytes, chance: random.Random) -> int:
    """An id that may follow: the lowest at or behind a random place. Raises GrammarError."""
    place = chance.randrange(len(mask))
    behind = mask[place:].lstrip(b"\0")
    if not behind:
        behind, place = mask.lstrip(b"\0"), 0
    if not behind:
        raise GrammarError("no id may follow")
    at = len(mask) - len(behind)
    return at * 8 + (behind[0] & -behind[0]).bit_length() - 1


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]))
