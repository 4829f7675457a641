"""`deeprequest tenants …`.

Owns what these commands print.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import typer
from rich.table import Table

from serve_app.commands.console import ConfigFile, Json, StateDir, out, print_json, told_plainly
from serve_app.commands.settings import TENANT, with_settings

app = typer.Typer(help="Tenants: weights, and limits over all their keys.", no_args_is_help=True)


@app.command("list")
@told_plainly()
def list_tenants(config: ConfigFile = None, state_dir: StateDir = None, json: Json = False) -> None:
    """All tenants, those without a record of their own too."""
    from serve_app.commands.source import Source
    from serve_app.tenancy.key_settings import shown_tenant, tenant_names

    book = Source(config, state_dir).book()
    rows = [shown_tenant(name, book) for name in tenant_names(book)]
    if json:
        return print_json({"tenants": rows})
    limits = ("rpm", "tpm", "concurrency")
    table = Table("tenant", "weight", "highest class", *limits, "active keys")
    for row in rows:
        figures = [str(row[name] or "-") for name in limits]
        about = (row["name"], str(row["weight"]), row["max_class"])
        table.add_row(*about, *figures, str(row["active_keys"]))
    out.print(table)


@app.command("set")
@with_settings(TENANT)
@told_plainly()
def set_tenant(
    name: Annotated[str, typer.Argument(help="The tenant; a new one is made.")],
    settings: Mapping[str, Any],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Change a tenant; what is not named stays. It holds from the next request on."""
    from serve_app.commands.source import Source
    from serve_app.tenancy import key_settings

    source = Source(config, state_dir)
    shape = partial(key_settings.set_tenant, settings=settings)
    source.change(lambda keys: keys.change_tenant(name, shape))
    if json:
        return print_json(key_settings.shown_tenant(name, source.book()))
    out.print(f"tenant {name} is set")
