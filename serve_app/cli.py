"""`deeprequest …`: the commands of the service.

Owns what starts, plans and tells of the service as a whole; every noun has a file in
`serve_app.commands`. Heavy libraries are imported inside the commands, so that `--help` stays
quick. Knows no Ray and no HTTP.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from serve_app.bench_command import app as bench_app
from serve_app.commands import keys, limits, queue, tenants, usage
from serve_app.commands.console import (
    ConfigFile,
    Json,
    StateDir,
    fail,
    out,
    print_json,
    told_plainly,
)

app = typer.Typer(
    help="Self-hosted serving of DeepSeek R1 32B behind an OpenAI-compatible API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys.app, name="keys")
app.add_typer(tenants.app, name="tenants")
app.add_typer(limits.app, name="limits")
app.add_typer(queue.app, name="queue")
app.add_typer(usage.app, name="usage")
app.command("audit")(queue.audit)
app.add_typer(bench_app, name="bench")


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The YAML file.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port.")] = None,
    state_dir: StateDir = None,
) -> None:
    """Start everything on this machine and run until Ctrl-C or SIGTERM."""
    from serve_app.config import ConfigError, ServeConfig
    from serve_app.local_service import LocalServiceError, run

    try:
        run(ServeConfig.load(config, host=host, port=port, state_dir=state_dir))
    except (ConfigError, LocalServiceError) as error:
        fail(str(error))
    sys.stdout.flush()
    os._exit(
        0
    )  # all is stopped: whatever Ray registered for the end of a process is not waited for


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def plan(context: typer.Context) -> None:
    """What fits on given devices, how fast it could be and what it costs; starts nothing."""
    from serve_app.plan_command import run

    raise typer.Exit(run(context.args))


@app.command()
@told_plainly()
def status(config: ConfigFile = None, state_dir: StateDir = None, json: Json = False) -> None:
    """The replicas, their load and their ranks."""
    from serve_app.commands.source import Source
    from serve_app.status import status_of

    found = Source(config, state_dir).ask(status_of)
    if json:
        return print_json(found)
    table = Table("replica", "state", "KV used", "running", "waiting", "ranks (pid@node)")
    for replica in found["replicas"]:
        ranks = ", ".join(f"{rank['pid']}@{rank['node']}" for rank in replica["ranks"])
        used = f"{replica['kv_used']:.0%}"
        load = [str(replica[name]) for name in ("running", "waiting")]
        table.add_row(replica["id"], replica["state"], used, *load, ranks)
    out.print(table)


@app.command()
@told_plainly()
def admin(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8001,
    config: ConfigFile = None,
    state_dir: StateDir = None,
) -> None:
    """Serve the admin API alone, beside the tenants file: for ingresses that have none."""
    import asyncio

    from serve_app.admin_service import serve_admin
    from serve_app.commands.source import Source

    source = Source(config, state_dir)
    out.print(f"The admin API is on http://{host}:{port}/admin/v1, the file is {source.path}")
    asyncio.run(serve_admin(source.state, source.service_redis(), host, port))


def main() -> None:
    """The console script. A plan is made without typer, whose conversions load pydantic."""
    if sys.argv[1:2] == ["plan"]:
        from serve_app.plan_command import run

        raise SystemExit(run(sys.argv[2:]))
    app()
