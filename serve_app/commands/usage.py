"""`deeprequest usage …`: what was used and what it cost.

Owns what these commands print.
"""

import datetime
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from serve_app.commands.console import (
    ConfigFile,
    Json,
    StateDir,
    fail,
    out,
    print_json,
    told_plainly,
)

if TYPE_CHECKING:
    from serve_app.ledger.reckoning import Findings
    from serve_app.ledger.sums import UsageQuery, UsageSum

app = typer.Typer(help="What was used and what it cost.")
DIMENSIONS = ("day", "model", "key", "tenant")


def day(text: str) -> datetime.date:
    """A calendar day, UTC. Raises typer.BadParameter."""
    try:
        return datetime.date.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter("a day is written as in 2027-01-31") from None


@app.callback(invoke_without_command=True)
@told_plainly()
def usage(  # noqa: PLR0913 - each is an option of the command
    context: typer.Context,
    tenant: Annotated[str | None, typer.Option(help="Of its keys alone.")] = None,
    key: Annotated[str | None, typer.Option(help="Of the key with that id alone.")] = None,
    since: Annotated[
        datetime.date | None, typer.Option(parser=day, metavar="DAY", help="The first day, UTC.")
    ] = None,
    until: Annotated[
        datetime.date | None, typer.Option(parser=day, metavar="DAY", help="The last day, UTC.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="A row for each day, model, key or tenant; may be given several times."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """What was used and what it cost, from the ledger, the last second included."""
    if context.invoked_subcommand is not None:
        return
    from serve_app.ledger.report import columns, csv_text, row
    from serve_app.ledger.sums import UsageQuery

    dimensions: Any = tuple(dict.fromkeys(by or ()))
    if not set(dimensions) <= set(DIMENSIONS):
        fail(f"--by is one of {', '.join(DIMENSIONS)}")
    if since is not None and until is not None and until < since:
        fail("--until is before --since")
    end = until + datetime.timedelta(1) if until is not None else None
    query = UsageQuery(by=dimensions, tenant=tenant, key=key, since=since, until=end)
    sums = _sums(config, state_dir, query)
    rows = [row(one, dimensions) for one in sums]
    if json:
        return print_json({"usage": rows})
    if csv:
        sys.stdout.write(csv_text(sums, dimensions))
        return
    shown = [name for name in columns(dimensions) if name != "cost_micros"]
    table = Table(*(name.replace("_", " ") for name in shown))
    for one in rows:
        table.add_row(*("-" if one[name] is None else str(one[name]) for name in shown))
    out.print(table)


@app.command("reconcile")
@told_plainly()
def reconcile(
    fix: Annotated[bool, typer.Option("--fix", help="Set the counters to the ledger.")] = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Compare what budgets have counted with the ledger. Exit code 1 when they differ still."""
    import msgspec

    from serve_app.commands.source import Source
    from serve_app.ledger.database import LedgerDatabase
    from serve_app.ledger.reckoning import Reckoning

    source = Source(config, state_dir)
    database = LedgerDatabase(source.state.ledger_url)
    if not database.is_there:
        fail(f"{source.state.state_dir} has no ledger; start a service, or give ledger.url")
    book = source.book()
    known = {f"k:{key.id}" for key in book.keys} | {f"t:{key.tenant}" for key in book.keys}
    found = source.ask(lambda store: Reckoning(store, database).compare(known, mend=fix))
    if json:
        print_json({"fixed": fix, **msgspec.to_builtins(found)})
    else:
        _print_findings(found, fix)
    raise typer.Exit(bool(found.differences) and not fix)


def _print_findings(found: "Findings", fixed: bool) -> None:
    out.print(f"{found.compared} keys and tenants compared, {len(found.differences)} differences")
    if found.too_busy:
        out.print(f"too many requests in flight to compare: {', '.join(found.too_busy)}")
    table = Table("who", "name", "period", "unit", "counted", "ledger", "")
    for one in found.differences:
        figures = (str(one.counted), str(one.ledger), "set" if fixed else "")
        table.add_row(one.scope, one.name, one.period, one.unit, *figures)
    if found.differences:
        out.print(table)


def _sums(config: ConfigFile, state_dir: StateDir, query: "UsageQuery") -> list["UsageSum"]:
    """Of a service that runs or does not. Raises StoreUnavailable, LedgerUnavailable."""
    import asyncio

    from serve_app.commands.source import Source
    from serve_app.ledger.database import LedgerDatabase
    from serve_app.ledger.reader import UsageReader

    source = Source(config, state_dir)
    found = LedgerDatabase(source.state.ledger_url)
    database = found if found.is_there else None
    if source.redis_url is not None:
        return source.ask(lambda store: UsageReader(store, database).sums(query))
    if database is None:
        fail(f"{source.state.state_dir} has no ledger; start a service, or give ledger.url")
    return asyncio.run(UsageReader(None, database).sums(query))
