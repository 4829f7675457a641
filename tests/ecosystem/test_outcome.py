"""Checks of a client that needs nothing, built and run as all are."""

import time
from pathlib import Path

import pytest

from tests.ecosystem.environments import Client, NotBuilt, build
from tests.ecosystem.outcome import Outcome, run

TOLD = """
import json
print(json.dumps({"client": "x", "version": "1", "checks": {"chat": "ok"}}))
"""
OVERRUN = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "60"])
open(os.environ["NOTE"], "w").write(str(child.pid))
time.sleep(60)
"""


def checked(folder: Path, script: str, limit_s: float = 30, **reached: str) -> Outcome:
    client = Client(folder / "x")
    client.folder.mkdir()
    client.needs.touch()
    (client.folder / "check.py").write_text(script)
    build(client, folder / "cache")
    return run(client, folder / "cache", reached, limit_s)


def test_what_a_check_tells_last_is_its_outcome(tmp_path: Path) -> None:
    outcome = checked(tmp_path, "print('working')" + TOLD)
    assert outcome.green
    assert (outcome.client, outcome.version) == ("x", "1")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("raise ValueError('no such thing')", "exit code 1: ValueError: no such thing"),
        ("print('{}')", "exit code 0: it told nothing"),
        (TOLD + "raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_check_that_breaks_is_red_by_its_last_words(
    tmp_path: Path, script: str, reason: str
) -> None:
    assert checked(tmp_path, script).checks["run"] == reason


def test_a_check_knows_nothing_of_whoever_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a key of yours")
    script = "import os\nassert 'OPENAI_API_KEY' not in os.environ, os.environ['HOME']" + TOLD
    assert checked(tmp_path, script).green


def test_a_check_that_overruns_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "child"
    outcome = checked(tmp_path, OVERRUN, limit_s=3, NOTE=str(note))
    assert outcome.checks["run"] == "not done within 3 s"
    child, deadline = Path(f"/proc/{note.read_text()}/stat"), time.monotonic() + 10
    while child.exists() and child.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_no_registry_has_is_not_built(tmp_path: Path) -> None:
    client = Client(tmp_path / "x")
    client.folder.mkdir()
    client.needs.write_text("./nowhere")
    with pytest.raises(NotBuilt, match="nowhere"):
        build(client, tmp_path / "cache")
