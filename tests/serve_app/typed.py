"""Commands as typed, run in the tests' own process."""

from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner, Result

from serve_app.cli import app

Command = Callable[..., Result]


def command_on(state_dir: Path) -> Command:
    """Runs commands on a state directory: `typed("keys", "list", "--json")`."""

    def run(*words: str) -> Result:
        given = [*words, "--state-dir", str(state_dir)]
        return CliRunner().invoke(app, given, env={"COLUMNS": "200"})

    return run
