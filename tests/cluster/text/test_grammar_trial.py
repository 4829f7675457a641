import contextlib
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from cluster.text import grammar_trial
from cluster.text.grammar import GrammarError
from cluster.text.grammar_trial import GrammarTrial, _some_id
from cluster.text.json_grammar import json_answer
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
    assert trial._process is not None  # neither out of time nor out of memory
    trial.run(GOOD)


def test_what_only_a_walk_through_it_shows_is_refused_too(trial: GrammarTrial) -> None:
    for name in ("a reference to itself", "1,000 optional properties", "multiples of a prime"):
        with pytest.raises(GrammarError, match=r"."):
            trial.run(json_answer(BOMBS[name]))


def test_a_trial_beyond_its_time_is_ended_and_the_next_one_runs() -> None:
    hasty = GrammarTrial(MODEL, limit_s=0.000_01)
    with pytest.raises(GrammarError, match="takes more than"):
        hasty.run(json_answer(BOMBS["a tree of 1,365 objects"]))
    assert hasty._process is None
    hasty.close()


def test_a_process_that_dies_refuses_its_grammar_and_is_replaced() -> None:
    trial = GrammarTrial(MODEL)
    trial.run(GOOD)
    assert trial._process is not None
    first = trial._process.pid
    trial._process.kill()
    with pytest.raises(GrammarError, match="limits"):
        trial.run(GOOD)
    trial.run(GOOD)
    assert trial._process is not None
    second = trial._process.pid
    assert second != first
    trial.close()
    assert not psutil.pid_exists(second)


def test_a_trial_that_starves_goes_on_in_a_process_with_a_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = GrammarTrial(MODEL)
    trial.run(GOOD)
    trial.run(GOOD)
    assert trial._process is not None
    starved = trial._process.pid
    assert os.sched_getscheduler(starved) == os.SCHED_IDLE
    monkeypatch.setattr(grammar_trial, "_starves", lambda process: process.pid == starved)
    with pytest.raises(GrammarError, match="not"):
        trial.run(json_answer({"not": {}}))
    assert not psutil.pid_exists(starved)
    assert os.sched_getscheduler(trial._process.pid) == os.SCHED_OTHER
    assert os.getpriority(os.PRIO_PROCESS, trial._process.pid) > 0
    trial.run(GOOD)
    trial.close()


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


def test_a_random_id_of_a_mask_is_one_of_its_bits() -> None:
    mask = bytearray(40)
    for token_id in (3, 4, 17, 200, 319):
        mask[token_id >> 3] |= 1 << (token_id & 7)
    chance = random.Random(1)
    found = {_some_id(bytes(mask), chance) for _ in range(200)}
    assert found == {3, 17, 200, 319}
    with pytest.raises(GrammarError):
        _some_id(bytes(40), chance)
