"""`deeprequest limits …`.

Owns where the self-test finds the service, and its table.
"""

from typing import Annotated

import typer
from rich.table import Table

from serve_app.commands.console import ConfigFile, Json, StateDir, out, print_json, told_plainly

app = typer.Typer(help="Whether limits are enforced.", no_args_is_help=True)


@app.callback()
def limits() -> None:
    """Whether limits are enforced."""


@app.command("self-test")
@told_plainly()
def self_test(
    url: Annotated[
        str | None,
        typer.Option(help="The service; else that of --config, else http://127.0.0.1:8000."),
    ] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Prove on a running service that limits are enforced: with keys that live for a minute.

    Exit code 1 when a check fails.
    """
    from serve_app.commands.self_test import SelfTest
    from serve_app.commands.source import Source

    source = Source(config, state_dir)
    checks = SelfTest(source, url or source.url()).run()
    passed = all(check.passed for check in checks)
    if json:
        print_json({"passed": passed, "checks": [check._asdict() for check in checks]})
    else:
        table = Table("check", "expected", "found", "")
        for check in checks:
            word = "ok" if check.passed else "FAILED"
            table.add_row(check.what, check.expected, check.found, word)
        out.print(table)
    raise typer.Exit(not passed)
