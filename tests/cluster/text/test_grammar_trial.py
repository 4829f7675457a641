import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from cluster.text.grammar import GrammarError
from cluster.text.grammar_trial import GrammarTrial, TrialLostError
from cluster.text.json_grammar import json_answer
from cluster.text.trial_process import LATE
from tests.cluster.text.grammar_bombs import BOMBS

MODEL = Path(__file__).resolve().parents[3] / "configs" / "models" / "deeprequest-demo"
GOOD = json_answer({"type": "array", "items": {"type": "integer"}})


@pytest.fixture(scope="module")
def trial() -> Iterator[GrammarTrial]:
    trial = GrammarTrial(MODEL)
    trial.run(GOOD)
    yield trial
    trial.close()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_or_compiled_and_harms_nobody(trial: GrammarTrial, name: str) -> None:
    with contextlib.suppress(GrammarError):
        trial.run(json_answer(BOMBS[name]))
    process = trial._process
    trial.run(GOOD)
    assert trial._process is process


def test_what_only_a_walk_through_it_shows_is_refused_too(trial: GrammarTrial) -> None:
    for name in ("a reference to itself", "1,000 optional properties", "multiples of a prime"):
        with pytest.raises(GrammarError, match=r"."):
            trial.run(json_answer(BOMBS[name]))


def test_a_trial_beyond_its_time_is_ended_and_its_process_is_not() -> None:
    hasty = GrammarTrial(MODEL, limit_s=0.02)
    for _ in range(2):
        with pytest.raises(GrammarError, match="takes more than"):
            hasty.run(json_answer(BOMBS["multiples of a prime"]))
    assert hasty._process is not None
    assert hasty._process.poll() is None
    hasty.close()


def test_the_process_starts_before_anybody_waits_for_it_and_ends_when_told() -> None:
    trial = GrammarTrial(MODEL)
    trial.start()
    assert trial._process is not None
    started = trial._process.pid
    trial.start()
    trial.run(GOOD)
    assert trial._process.pid == started
    assert os.getpgid(started) == started
    assert os.getsid(started) == os.getsid(0), "niceness counts within a session only"
    assert os.getpriority(os.PRIO_PROCESS, started) > 0
    trial.close()
    assert not psutil.pid_exists(started)


def test_a_process_that_dies_is_replaced_and_no_grammar_is_blamed_for_it() -> None:
    trial = GrammarTrial(MODEL)
    trial.run(GOOD)
    assert trial._process is not None
    first = trial._process.pid
    trial._process.kill()
    trial.run(GOOD)
    assert trial._process.pid != first
    trial.close()


@pytest.mark.parametrize("answer", [None, LATE])
def test_no_verdict_is_no_refusal(answer: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = GrammarTrial(MODEL)
    monkeypatch.setattr(trial, "_ask", lambda source: answer)
    with pytest.raises(TrialLostError):
        trial.run(GOOD)


def test_trials_of_many_threads_take_turns(trial: GrammarTrial) -> None:
    bad = json_answer({"not": {}})

    def passes(source: str) -> bool:
        try:
            trial.run(source)
        except GrammarError:
            return False
        return True

    sources = [GOOD, bad] * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(passes, sources)) == [True, False] * 20
