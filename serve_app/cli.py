"""`deeprequest …`: the commands of the service.

Owns arguments, options and what is printed; every command does its work elsewhere. Heavy libraries
are imported inside the commands, so that `--help` stays quick. Knows no Ray and no HTTP.
"""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from serve_app.config import ConfigError, ServeConfig
from serve_app.config import state_dir as resolved_state_dir

app = typer.Typer(
    help="Self-hosted serving of DeepSeek R1 32B behind an OpenAI-compatible API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="API keys and their limits.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

StateDir = Annotated[
    Path | None,
    typer.Option(help="Keys, Redis data, run files; else DEEPREQUEST_STATE_DIR or .deeprequest/"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
out = Console(soft_wrap=True)


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The YAML file.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port.")] = None,
    state_dir: StateDir = None,
) -> None:
    """Start everything on this machine and run until Ctrl-C or SIGTERM."""
    from serve_app.local_service import LocalServiceError, run

    try:
        run(ServeConfig.load(config, host=host, port=port, state_dir=state_dir))
    except (ConfigError, LocalServiceError) as error:
        _fail(str(error))


@keys_app.command("create")
def keys_create(
    tenant: Annotated[str, typer.Option(help="Who the key belongs to.")],
    rpm: Annotated[int, typer.Option(min=0, help="Requests per minute; 0: no limit.")] = 0,
    tpm: Annotated[int, typer.Option(min=0, help="Tokens per minute; 0: no limit.")] = 0,
    concurrency: Annotated[int, typer.Option(min=0, help="Requests at a time; 0: no limit.")] = 0,
    burst: Annotated[int, typer.Option(min=1, help="Seconds' worth of a rate at once.")] = 60,
    label: Annotated[str, typer.Option(help="A note for people.")] = "",
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Make a key. Its secret is shown once and stored nowhere."""
    from serve_app.tenancy.limiter import Limits

    try:
        limits = Limits(rpm=rpm, tpm=tpm, concurrency=concurrency, burst_s=burst)
        created = _key_file(state_dir).create(tenant, limits, label=label)
    except ValueError as error:
        _fail(str(error))
    _publish(state_dir)
    if json:
        return _print_json(
            {"id": created.key.id, "secret": created.secret, "tenant": created.key.tenant}
        )
    out.print(f"key {created.key.id} for {tenant}; its secret, shown this once:")
    out.print(created.secret, highlight=False)


@keys_app.command("list")
def keys_list(state_dir: StateDir = None, json: Json = False) -> None:
    """All keys, without their secrets."""
    rows = [_key_row(key) for key in _key_file(state_dir).read().keys]
    if json:
        return _print_json({"keys": rows})
    table = Table("id", "tenant", "status", "rpm", "tpm", "concurrency", "label")
    for row in rows:
        limits = [str(row[name] or "-") for name in ("rpm", "tpm", "concurrency")]
        table.add_row(row["id"], row["tenant"], row["status"], *limits, row["label"])
    out.print(table)


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows.")],
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """End a key: its next request is refused."""
    from serve_app.tenancy.keys import UnknownKey

    try:
        key = _key_file(state_dir).revoke(key_id)
    except UnknownKey:
        _fail(f"no key has the id {key_id}; `deeprequest keys list` shows them")
    _publish(state_dir)
    if json:
        return _print_json(_key_row(key))
    out.print(f"key {key.id} is revoked")


@app.command()
def status(state_dir: StateDir = None, json: Json = False) -> None:
    """The replicas, their load and their ranks."""
    from serve_app.status import read_status

    url = _running_redis(state_dir)
    if url is None:
        _fail(f"no service runs on {resolved_state_dir(state_dir)}; start one or give --state-dir")
    found = asyncio.run(read_status(url))
    if json:
        return _print_json(found)
    table = Table("replica", "state", "KV used", "running", "waiting", "ranks (pid@node)")
    for replica in found["replicas"]:
        ranks = ", ".join(f"{rank['pid']}@{rank['node']}" for rank in replica["ranks"])
        used = f"{replica['kv_used']:.0%}"
        table.add_row(
            replica["id"],
            replica["state"],
            used,
            str(replica["running"]),
            str(replica["waiting"]),
            ranks,
        )
    out.print(table)


def main() -> None:
    """The console script."""
    app()


def _key_file(state_dir: Path | None) -> Any:
    from serve_app.tenancy.keys import KeyFile, KeyFileError, load_pepper

    folder = resolved_state_dir(state_dir)
    try:
        return KeyFile(folder / "keys.json", load_pepper(folder / "pepper"))
    except (KeyFileError, OSError) as error:
        _fail(str(error))


def _publish(state_dir: Path | None) -> None:
    """Tell a running service at once; one that starts later reads the file."""
    from serve_app.status import publish_keys
    from serve_app.tenancy.refusals import StoreUnavailable

    url = _running_redis(state_dir)
    if url is None:
        return
    try:
        asyncio.run(publish_keys(url, _key_file(state_dir).read()))
    except StoreUnavailable as error:
        _fail(f"the key file is written, but Redis at {url} does not answer: {error.reason}")


def _running_redis(state_dir: Path | None) -> str | None:
    from serve_app.config import ShortEnvironment
    from serve_app.tenancy.redis_server import running_url

    given = ShortEnvironment().redis_url
    return given or running_url(resolved_state_dir(state_dir) / "redis")


def _key_row(key: Any) -> dict[str, Any]:
    limits = {name: getattr(key.limits, name) for name in ("rpm", "tpm", "concurrency")}
    about = {"id": key.id, "tenant": key.tenant, "label": key.label, "status": key.status}
    return about | limits | {"created_at": key.created_at, "expires_at": key.expires_at or None}


def _print_json(value: Any) -> None:
    import orjson

    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def _fail(message: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {message}", highlight=False)
    raise typer.Exit(1)
