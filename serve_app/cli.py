"""`deeprequest …`: the commands of the service.

Owns arguments, options and what is printed; every command does its work elsewhere. Heavy libraries
are imported inside the commands, so that `--help` stays quick. Knows no Ray and no HTTP.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serve_app.bench_command import app as bench_app

if TYPE_CHECKING:
    from serve_app.config import ServiceState

app = typer.Typer(
    help="Self-hosted serving of DeepSeek R1 32B behind an OpenAI-compatible API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="API keys and their limits.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(bench_app, name="bench")

StateDir = Annotated[
    Path | None,
    typer.Option(help="Keys, Redis data, run files; else DEEPREQUEST_STATE_DIR or .deeprequest/"),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="The service's YAML file, where it names Redis, a pool, a key file or a pepper file; "
        "else DEEPREQUEST_REDIS_URL or the state directory's Redis, pool `main`, and the state "
        "directory's files.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
# Labels and paths are people's words: `[/x]` in them is no markup and `:x:` no picture.
out = Console(soft_wrap=True, markup=False, emoji=False)


@contextlib.contextmanager
def _told_plainly() -> Iterator[None]:
    """What whoever types the command can mend is one line and exit code 1, not a traceback."""
    from serve_app.tenancy.refusals import StoreUnavailable

    try:
        yield
    except StoreUnavailable as error:
        _fail(f"Redis does not answer: {error.reason}")
    except (ValueError, OSError) as error:
        _fail(str(error))


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
        _fail(str(error))


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def plan(context: typer.Context) -> None:
    """What fits on given devices, how fast it could be and what it costs; starts nothing."""
    from serve_app.plan_command import run

    raise typer.Exit(run(context.args))


@keys_app.command("create")
@_told_plainly()
def keys_create(  # noqa: PLR0913 - each is an option of the command
    tenant: Annotated[str, typer.Option(help="Who the key belongs to.")],
    rpm: Annotated[int, typer.Option(min=0, help="Requests per minute; 0: no limit.")] = 0,
    tpm: Annotated[int, typer.Option(min=0, help="Tokens per minute; 0: no limit.")] = 0,
    concurrency: Annotated[int, typer.Option(min=0, help="Requests at a time; 0: no limit.")] = 0,
    burst: Annotated[int, typer.Option(min=1, help="Seconds' worth of a rate at once.")] = 60,
    label: Annotated[str, typer.Option(help="A note for people.")] = "",
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Make a key. Its secret is shown once and stored nowhere."""
    from serve_app.config import service_state
    from serve_app.tenancy.keys import KeyFile, load_pepper
    from serve_app.tenancy.limiter import Limits

    state = service_state(config, state_dir)
    limits = Limits(rpm=rpm, tpm=tpm, concurrency=concurrency, burst_s=burst)
    key_file = KeyFile(state.keys_path, load_pepper(state.pepper_path))
    created = key_file.create(tenant, limits, label=label)
    _publish(state)
    if json:
        return _print_json(
            {"id": created.key.id, "secret": created.secret, "tenant": created.key.tenant}
        )
    out.print(f"key {created.key.id} for {tenant}; its secret, shown this once:")
    out.print(created.secret, highlight=False)


@keys_app.command("list")
@_told_plainly()
def keys_list(config: ConfigFile = None, state_dir: StateDir = None, json: Json = False) -> None:
    """All keys, without their secrets."""
    from serve_app.config import service_state

    state = service_state(config, state_dir)
    rows = [_key_row(key) for key in _known_keys(state).read().keys]
    if json:
        return _print_json({"keys": rows})
    table = Table("id", "tenant", "status", "rpm", "tpm", "concurrency", "label")
    for row in rows:
        limits = [str(row[name] or "-") for name in ("rpm", "tpm", "concurrency")]
        table.add_row(row["id"], row["tenant"], row["status"], *limits, row["label"])
    out.print(table)


@keys_app.command("revoke")
@_told_plainly()
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """End a key: its next request is refused."""
    from serve_app.config import service_state

    state = service_state(config, state_dir)
    key_file = _known_keys(state)
    if key_id not in {key.id for key in key_file.read().keys}:
        _fail(
            f"no key in {state.keys_path} has the id {key_id}; `deeprequest keys list` shows them"
        )
    key = key_file.revoke(key_id)
    _publish(state)
    if json:
        return _print_json(_key_row(key))
    out.print(f"key {key.id} is revoked")


@app.command()
@_told_plainly()
def status(config: ConfigFile = None, state_dir: StateDir = None, json: Json = False) -> None:
    """The replicas, their load and their ranks."""
    import asyncio

    from serve_app.config import service_state
    from serve_app.status import read_status

    state = service_state(config, state_dir)
    url = _running_redis(state)
    if url is None:
        _fail(f"no service runs on {state.state_dir}; start one, or give --state-dir or --config")
    found = asyncio.run(read_status(url, state.admission.pool))
    if json:
        return _print_json(found)
    table = Table("replica", "state", "KV used", "running", "waiting", "ranks (pid@node)")
    for replica in found["replicas"]:
        ranks = ", ".join(f"{rank['pid']}@{rank['node']}" for rank in replica["ranks"])
        used = f"{replica['kv_used']:.0%}"
        load = [str(replica[name]) for name in ("running", "waiting")]
        table.add_row(replica["id"], replica["state"], used, *load, ranks)
    out.print(table)


def main() -> None:
    """The console script. A plan is made without typer, whose conversions load pydantic."""
    if sys.argv[1:2] == ["plan"]:
        from serve_app.plan_command import run

        raise SystemExit(run(sys.argv[2:]))
    app()


def _known_keys(state: "ServiceState") -> Any:
    """The key file without the pepper, which only a new key needs: nothing is made on disk."""
    from serve_app.tenancy.keys import KeyFile

    return KeyFile(state.keys_path, b"")


def _publish(state: "ServiceState") -> None:
    """Tell a running service at once; one that starts later reads the file."""
    import asyncio

    from serve_app.status import publish_keys
    from serve_app.tenancy.refusals import StoreUnavailable

    url = _running_redis(state)
    if url is None:
        return
    try:
        asyncio.run(publish_keys(url, _known_keys(state).read(), state.admission.pool))
    except StoreUnavailable as error:
        _fail(f"{state.keys_path} is written, but Redis does not answer: {error.reason}")


def _running_redis(state: "ServiceState") -> str | None:
    from serve_app.tenancy.redis_server import running_url

    return state.admission.redis_url or running_url(state.state_dir / "redis")


def _key_row(key: Any) -> dict[str, Any]:
    limits = {name: getattr(key.limits, name) for name in ("rpm", "tpm", "concurrency")}
    about = {"id": key.id, "tenant": key.tenant, "label": key.label, "status": key.status}
    return about | limits | {"created_at": key.created_at, "expires_at": key.expires_at or None}


def _print_json(value: Any) -> None:
    import orjson

    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def _fail(message: str) -> NoReturn:
    line = Text.assemble(("error:", "red"), " ", message)
    Console(stderr=True, soft_wrap=True).print(line, highlight=False)
    raise typer.Exit(1)
