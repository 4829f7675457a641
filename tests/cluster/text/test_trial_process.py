"""One trial: what it may take, who computes it, and what is left of it."""

import functools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from cluster.text import trial_process
from cluster.text.grammar import GrammarCompiler, GrammarError
from cluster.text.json_grammar import json_answer
from cluster.text.tokenizer import Tokenizer
from cluster.text.trial_process import LATE, some_id, verdict

MODEL = Path(__file__).resolve().parents[3] / "configs" / "models" / "deeprequest-demo"
GOOD = json_answer({"type": "array", "items": {"type": "integer"}})
IDLE, SHARED = str(os.SCHED_IDLE), str(os.SCHED_OTHER)

Refusal = Callable[[Any, str], str]
Verdict = Callable[..., str]
compiler = functools.cache(lambda: GrammarCompiler(Tokenizer(MODEL)))
refusal = trial_process._refusal


def tried(source: str, how: Refusal, limit_s: float) -> str:
    """A verdict if trials went like `how`; no process is left by it."""
    with mock.patch.object(trial_process, "_refusal", how):
        told = verdict(compiler(), source, limit_s)
    assert psutil.Process().children() == []
    return told


@pytest.fixture(scope="module")
def trial() -> Iterator[Verdict]:
    """In a process as small as the one that is forked in earnest."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda source, how=refusal, limit_s=10.0: pool.submit(
            tried, source, how, limit_s
        ).result()


def tell_policy(compiler: object, source: str) -> str:
    policy = str(os.sched_getscheduler(0))
    while source == policy:
        time.sleep(1)
    return policy


def spin(compiler: object, source: str) -> str:
    while True:
        pass


def sleep(compiler: object, source: str) -> str:
    time.sleep(600)
    return ""


def exhaust_memory(compiler: object, source: str) -> str:
    return str(len(bytearray(2**40)))


def crash(compiler: object, source: str) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


class Panic(BaseException):
    """What Rust's panics are to Python."""


def panic(compiler: object, source: str) -> str:
    raise Panic


def test_what_passes_and_what_does_not(trial: Verdict) -> None:
    assert trial(GOOD) == ""
    assert "not" in trial(json_answer({"not": {}}))


def test_a_trial_has_what_nobody_else_wants(trial: Verdict) -> None:
    assert trial("", tell_policy) in (IDLE, SHARED)  # the latter on a busy machine


def test_a_trial_that_starves_is_replaced_by_one_with_a_share(trial: Verdict) -> None:
    assert trial(IDLE, tell_policy) == SHARED


def test_processor_time_is_limited_and_so_is_waiting(trial: Verdict) -> None:
    # on a busy machine there may be no verdict
    assert trial("", spin, 0.05) in ("it takes more than 0.05 s", LATE)
    assert trial("", sleep, 0.05) == LATE


@pytest.mark.parametrize("ruin", [exhaust_memory, crash, panic])
def test_a_trial_that_ruins_its_process_is_refused(trial: Verdict, ruin: Refusal) -> None:
    assert trial("", ruin) == "it exceeds the limits"
    assert trial(GOOD) == ""


def test_a_random_id_of_a_mask_is_one_of_its_bits() -> None:
    mask = bytearray(40)
    for token_id in (3, 4, 17, 200, 319):
        mask[token_id >> 3] |= 1 << (token_id & 7)
    chance = random.Random(1)
    found = {some_id(bytes(mask), chance) for _ in range(200)}
    assert found == {3, 17, 200, 319}
    with pytest.raises(GrammarError):
        some_id(bytes(40), chance)
