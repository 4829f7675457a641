"""Client: a folder of the matrix, and the environment that its check runs in.

Owns the building: one virtual environment or one node_modules per client, from the registries and
nothing else, kept in a cache folder under the digest of what was asked for. Knows no service.
"""

import hashlib
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
CACHE = ROOT / ".ecosystem"
BUILD_LIMIT_S = 900.0
READY = ".built"


class NotBuilt(Exception):
    """An environment could not be made; the message is the installer's last words."""


@dataclass(frozen=True)
class Client:
    """A folder with a check and what it needs: requirements.txt, or package.json for Node."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def is_node(self) -> bool:
        return (self.folder / "package.json").exists()

    @property
    def needs(self) -> Path:
        return self.folder / ("package.json" if self.is_node else "requirements.txt")

    def environment(self, cache: Path) -> Path:
        """Where its environment is or will be; other needs, or another Python, give another one."""
        asked = self.needs.read_bytes() + sys.version.encode()
        return cache / f"{self.name}-{hashlib.sha256(asked).hexdigest()[:12]}"

    def command(self, cache: Path) -> list[str]:
        """The check, in its environment."""
        environment = self.environment(cache)
        if self.is_node:
            return ["node", str(environment / self.name / "check.mjs")]
        return [str(environment / "bin" / "python"), str(self.folder / "check.py")]


def clients(names: list[str] | None = None) -> list[Client]:
    """Those named, or all; KeyError for one that is not there."""
    found = {path.parent.name: Client(path.parent) for path in sorted(FOLDER.glob("*/check.*"))}
    return [found[name] for name in names or found]


def missing_tool(client: Client) -> str | None:
    """What this machine lacks to run the client, in words."""
    if client.is_node and not (shutil.which("node") and shutil.which("npm")):
        return "node and npm are not installed"
    return None


def build(client: Client, cache: Path) -> None:
    """Make the environment unless it is there; NotBuilt if the registries do not give it."""
    environment = client.environment(cache)
    if not (environment / READY).exists():
        shutil.rmtree(environment, ignore_errors=True)
        environment.mkdir(parents=True)
        _install(_npm(client, environment) if client.is_node else _pip(client, environment))
        (environment / READY).touch()
    if client.is_node:
        _lay_out(client, environment)


def _pip(client: Client, environment: Path) -> list[str]:
    venv.create(environment, with_pip=False, symlinks=True)
    python = str(environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    return [*pip, "install", "--quiet", "--requirement", str(client.needs)]


def _npm(client: Client, environment: Path) -> list[str]:
    shutil.copy(client.needs, environment)
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    return ["npm", "install", "--prefix", str(environment), "--ignore-scripts", *quiet]


def _lay_out(client: Client, environment: Path) -> None:
    """Node looks for packages above a script, so the scripts go beside node_modules."""
    (environment / client.name).mkdir(exist_ok=True)
    shutil.copy(FOLDER / "contract.mjs", environment)
    shutil.copy(client.folder / "check.mjs", environment / client.name)


def _install(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotBuilt(f"not installed within {BUILD_LIMIT_S:.0f} s") from None
    if done.returncode:
        raise NotBuilt((done.stderr.strip() or done.stdout.strip()).splitlines()[-1][:300])
