"""What commands share: options that all have, how they print, how they fail.

Owns the colour of an error and that it is one line with exit code 1. Knows no command.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

StateDir = Annotated[
    Path | None,
    typer.Option(help="Keys, Redis data, run files; else DEEPREQUEST_STATE_DIR or .deeprequest/"),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="The service's YAML file, where it names Redis, a pool, a tenants file or a pepper "
        "file; else DEEPREQUEST_REDIS_URL or the state directory's Redis, pool `main`, and the "
        "state directory's files.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
# Labels and paths are people's words: `[/x]` in them is no markup and `:x:` no picture.
out = Console(soft_wrap=True, markup=False, emoji=False)


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """What whoever types the command can mend is one line and exit code 1, not a traceback."""
    from serve_app.tenancy.refusals import StoreUnavailable

    try:
        yield
    except StoreUnavailable as error:
        fail(f"Redis does not answer: {error.reason}")
    except (ValueError, OSError) as error:
        fail(str(error))


def print_json(value: Any) -> None:
    import orjson

    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def fail(message: str) -> NoReturn:
    line = Text.assemble(("error:", "red"), " ", message)
    Console(stderr=True, soft_wrap=True).print(line, highlight=False)
    raise typer.Exit(1)
