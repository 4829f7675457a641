"""`deeprequest keys …`.

Owns what these commands print. A secret is printed when it is made and never again.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from serve_app.commands.console import ConfigFile, Json, StateDir, out, print_json, told_plainly
from serve_app.commands.settings import KEY, with_settings
from serve_app.commands.values import duration, shown_moment

if TYPE_CHECKING:
    from serve_app.tenancy.keys import CreatedKey

app = typer.Typer(help="API keys and their limits.", no_args_is_help=True)
KeyId = Annotated[str, typer.Argument(help="The id that `keys list` shows.")]


@app.command("create")
@with_settings(KEY)
@told_plainly()
def create(
    tenant: Annotated[str, typer.Option(help="Who the key belongs to.")],
    settings: Mapping[str, Any],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Make a key. Its secret is shown once and stored nowhere."""
    from serve_app.commands.source import Source
    from serve_app.tenancy.key_settings import set_key

    shape = partial(set_key, settings=settings)
    source = Source(config, state_dir)
    created = source.change(lambda keys: keys.create(tenant, shape=shape), peppered=True)
    _print_secret(created, json, f"key {created.key.id} for {tenant}; its secret")


@app.command("list")
@told_plainly()
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Its keys alone.")] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """All keys, without their secrets."""
    from serve_app.commands.source import Source
    from serve_app.tenancy.key_settings import shown_key

    keys = Source(config, state_dir).book().keys
    rows = [shown_key(key) for key in keys if tenant is None or key.tenant == tenant]
    if json:
        return print_json({"keys": rows})
    limits = ("rpm", "tpm", "concurrency")
    table = Table("id", "tenant", "status", "scopes", *limits, "expires (UTC)", "label")
    for row in rows:
        figures = [str(row[name] or "-") for name in limits]
        about = (row["id"], row["tenant"], row["status"], ",".join(row["scopes"]))
        table.add_row(*about, *figures, shown_moment(row["expires_at"]), row["label"])
    out.print(table)


@app.command("show")
@told_plainly()
def show(
    key_id: KeyId, config: ConfigFile = None, state_dir: StateDir = None, json: Json = False
) -> None:
    """All about one key but its secret."""
    from serve_app.commands.source import Source
    from serve_app.tenancy.key_settings import shown_key

    _print_row(shown_key(Source(config, state_dir).key(key_id)), json)


@app.command("limits")
@with_settings(KEY)
@told_plainly()
def limits(
    key_id: KeyId,
    settings: Mapping[str, Any],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Change what a key may do; what is not named stays. It holds from the next request on."""
    from serve_app.commands.source import Source
    from serve_app.tenancy.key_settings import set_key, shown_key

    shape = partial(set_key, settings=settings)
    source = Source(config, state_dir)
    key = source.change_key(key_id, lambda keys: keys.change(key_id, shape, "limits"))
    _print_row(shown_key(key), json)


@app.command("rotate")
@told_plainly()
def rotate(
    key_id: KeyId,
    overlap: Annotated[
        int,
        typer.Option(
            parser=duration, metavar="DURATION", help="How long the present secret stays good."
        ),
    ] = "24h",  # type: ignore[assignment]
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Give a key a new secret, shown once; limits and usage stay."""
    from serve_app.commands.source import Source

    source = Source(config, state_dir)
    rotated = source.change_key(key_id, lambda keys: keys.rotate(key_id, overlap), peppered=True)
    ends = shown_moment(rotated.key.old_secrets[-1].until)
    _print_secret(rotated, json, f"key {key_id}: its old secret ends {ends} UTC; the new one")


@app.command("revoke")
@told_plainly()
def revoke(
    key_id: KeyId, config: ConfigFile = None, state_dir: StateDir = None, json: Json = False
) -> None:
    """End a key: its next request is refused, what it has running ends within a second."""
    from serve_app.commands.source import Source
    from serve_app.tenancy.key_settings import shown_key

    key = Source(config, state_dir).change_key(key_id, lambda keys: keys.revoke(key_id))
    if json:
        return print_json(shown_key(key))
    out.print(f"key {key.id} is revoked")


def _print_secret(created: "CreatedKey", json: bool, about: str) -> None:
    key = created.key
    if json:
        ends = [old.until for old in key.old_secrets[-1:]]
        made: dict[str, Any] = {"id": key.id, "secret": created.secret, "tenant": key.tenant}
        return print_json(made | ({"old_secret_ends_at": ends[0]} if ends else {}))
    out.print(f"{about}, shown this once:")
    out.print(created.secret, highlight=False)


def _print_row(row: Mapping[str, Any], json: bool) -> None:
    if json:
        return print_json(row)
    table = Table(show_header=False)
    for name, value in row.items():
        table.add_row(name, _words(name, value))
    out.print(table)


def _words(name: str, value: Any) -> str:
    if name.endswith("_at") and isinstance(value, int):
        return f"{shown_moment(value)} UTC"
    if isinstance(value, dict):
        return ", ".join(f"{part}: {_words(part, inner)}" for part, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value in (None, 0, "") else str(value)
