"""Service: one instance of `deeprequest serve`, started by the real command, and its clients."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [str(Path(sys.executable).with_name("deeprequest"))]
START_TIMEOUT_S = 120
PATIENT = {"DEEPREQUEST_ADMISSION__REDIS_TIMEOUT_S": "2"}
"""A busy machine is not an outage."""
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Nor is a disk that keeps the append-only file of a Redis waiting for seconds."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Service:
    """One instance of `deeprequest serve` and what a client needs to reach it."""

    port: int
    state_dir: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.state_dir / "demo-key").read_text().strip()

    def client(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, **options)

    def cli(self, *arguments: str) -> Any:
        """Run a command on this instance and parse its JSON."""
        done = subprocess.run(
            [*COMMAND, *arguments, "--state-dir", str(self.state_dir), "--json"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return json.loads(done.stdout)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics")[1].splitlines()
        values = [
            line.rsplit(" ", 1)[1] for line in lines if line.startswith((f"{name} ", f"{name}{{"))
        ]
        return sum(float(value) for value in values)

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while self.get("/ready")[0] != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"not ready:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.1)


@contextlib.contextmanager
def running_service(
    environment: dict[str, str] | None = None, state_dir: Path | None = None
) -> Iterator[Service]:
    """Start an instance, with a state directory of its own unless given; stop it with SIGTERM."""
    with tempfile.TemporaryDirectory(prefix="e2e-", dir=MEMORY) as folder:
        state_dir, log = state_dir or Path(folder) / "state", Path(folder) / "log"
        port = free_port()
        command = [*COMMAND, "serve", "--config", str(ROOT / "configs/quickstart.yaml")]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--port", str(port), "--state-dir", str(state_dir)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | PATIENT | (environment or {}),
            )
        service = Service(port, state_dir, process, log)
        try:
            service.wait_until_ready()
            yield service
        finally:
            stopped(process)


def stopped(process: subprocess.Popen[bytes]) -> None:
    """End an instance as Ctrl-C does."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
