"""Outcome: what one client's check came to. `run` makes one from a check's last line.

A check gets a home of its own and hardly any variables, so that no key, proxy or configuration of
whoever runs the matrix can stand in for the service, and nothing is left behind.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.e2e.service import Service
from tests.ecosystem.environments import ROOT, Client

LIMIT_S = 600.0
KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass(frozen=True)
class Outcome:
    """As told by the check, or one failed check, "run", where it told nothing."""

    client: str
    version: str = ""
    checks: dict[str, str] = field(default_factory=dict)
    reasoning: str = "n/a"
    note: str = ""
    seconds: float = 0.0

    @property
    def green(self) -> bool:
        return bool(self.checks) and all(told == "ok" for told in self.checks.values())

    @property
    def sees_thoughts(self) -> bool:
        return self.reasoning in ("as reasoning", "in text")


def failed(client: Client, reason: str) -> Outcome:
    return Outcome(client.name, checks={"run": reason})


def address(service: Service) -> dict[str, str]:
    """The variables by which checks reach a service; makes a key for them."""
    options = ("--tenant", "ecosystem", "--reasoning-format", "split")
    return {
        "DEEPREQUEST_BASE_URL": f"{service.url}/v1",
        "DEEPREQUEST_API_KEY": service.key,
        "DEEPREQUEST_SPLIT_API_KEY": service.cli("keys", "create", *options)["secret"],
    }


def run(client: Client, cache: Path, reached: dict[str, str], limit_s: float = LIMIT_S) -> Outcome:
    """Run a built client's check against a service; `reached` is its address.

    What it writes to standard error is passed on where a check failed.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="client-") as home:
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        variables = kept | reached | {"HOME": home, "TMPDIR": home, "PYTHONPATH": str(ROOT)}
        done = _done(client.command(cache), variables, limit_s)
    if done is None:
        return failed(client, f"not done within {limit_s:.0f} s")
    outcome = _told(client, done)
    if not outcome.green:
        print(done.stderr[-4000:], file=sys.stderr)
    return replace(outcome, seconds=time.monotonic() - started)


def _done(
    command: list[str], variables: dict[str, str], limit_s: float
) -> subprocess.CompletedProcess[str] | None:
    """A finished command; None if it was ended at the limit, with all that it started."""
    with subprocess.Popen(
        command,
        env=variables,
        cwd=variables["HOME"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _told(client: Client, done: subprocess.CompletedProcess[str]) -> Outcome:
    lines = done.stdout.strip().splitlines()
    try:
        outcome = Outcome(**json.loads(lines[-1]))
    except (IndexError, ValueError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it told nothing"])[-1][:300]
        return failed(client, f"exit code {done.returncode}: {last}")
    if outcome.green and done.returncode:
        return replace(outcome, checks=outcome.checks | {"run": f"exit code {done.returncode}"})
    return outcome
