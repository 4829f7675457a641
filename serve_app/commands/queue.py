"""`deeprequest queue …` and `deeprequest audit`: what a running service does and was told.

Owns what these commands print.
"""

from typing import Annotated

import typer
from rich.table import Table

from serve_app.commands.console import ConfigFile, Json, StateDir, out, print_json, told_plainly
from serve_app.commands.values import shown_moment

app = typer.Typer(help="Who waits.", no_args_is_help=True)


@app.command("show")
@told_plainly()
def show(config: ConfigFile = None, state_dir: StateDir = None, json: Json = False) -> None:
    """Waiting requests by class and tenant, those whose turn it is first."""
    import msgspec

    from serve_app.commands.source import Source
    from serve_app.tenancy.queue_view import queue_view

    view = Source(config, state_dir).ask(queue_view)
    if json:
        return print_json(msgspec.to_builtins(view))
    out.print(f"{view.running} running, {view.waiting} waiting, {view.replicas} ready replicas")
    table = Table("class", "tenant", "waiting", "oldest", "in flight")
    for one in view.tenants:
        counts = (str(one.waiting), f"{one.oldest_wait_s:.1f} s", str(one.in_flight))
        table.add_row(one.service_class, one.tenant, *counts)
    if view.tenants:
        out.print(table)


@told_plainly()
def audit(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many, newest first.")] = 50,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Who changed which key or tenant, when, and what."""
    import msgspec

    from serve_app.commands.source import Source
    from serve_app.tenancy.audit import read_audit

    entries = Source(config, state_dir).ask(lambda store: read_audit(store, limit))
    if json:
        return print_json({"audit": msgspec.to_builtins(entries)})
    table = Table("when (UTC)", "who", "did", "kind", "name", "what")
    for entry in entries:
        about = (entry.by, entry.op, entry.kind, entry.name)
        table.add_row(shown_moment(entry.at), *about, " ".join(entry.changes))
    out.print(table)
