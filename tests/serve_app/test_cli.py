"""The commands for keys and status, as typed: what they print, write, publish and refuse."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli import app
from serve_app.tenancy.capacity import CapacityReporter, ReplicaLoad
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.secret import SECRET, digest_of
from serve_app.tenancy.store import Store
from tests.serve_app.typed import Command

ROOT = Path(__file__).resolve().parents[2]


def create(typed: Command, *words: str) -> dict[str, Any]:
    result = typed("keys", "create", "--tenant", "acme", "--json", *words)
    assert result.exit_code == 0, result.output
    made: dict[str, Any] = json.loads(result.stdout)
    return made


def listed(typed: Command, *words: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(typed("keys", "list", "--json", *words).stdout)["keys"]
    return rows


def asked(url: str, script: str, *args: str, pool: str = "main") -> Any:
    """What Redis answers to one of the service's own scripts."""

    async def ask() -> Any:
        async with Store(url, pool, timeout_s=3.0) as store:
            return await store.run(script, *args)

    return asyncio.run(ask())


def beat(url: str, pool: str = "main") -> None:
    """A replica's heartbeat, as the service sends it."""

    async def report() -> None:
        async with Store(url, pool, timeout_s=3.0) as store:
            load = ReplicaLoad(kv_total=100, kv_free=75, max_running=8, running=3, waiting=2)
            ranks = {"ranks": [{"rank": 0, "pid": 7, "node": "here"}]}
            await CapacityReporter(store, "r[/1]", ttl_s=60).report(load, "ready", ranks)

    asyncio.run(report())


def test_a_created_key_is_listed_without_its_secret_and_can_be_revoked(typed: Command) -> None:
    limits = ("--rpm", "5", "--tpm", "1000", "--concurrency", "2", "--label", "ci")
    made = create(typed, *limits, "--tokens-per-day", "900")
    assert set(made) == {"id", "secret", "tenant"}
    assert SECRET.fullmatch(made["secret"])
    (row,) = listed(typed)
    assert row.pop("created_at") > 0
    assert row.pop("changed")["op"] == "create"
    assert row == {
        "id": made["id"],
        "tenant": "acme",
        "label": "ci",
        "status": "active",
        "scopes": ["inference", "usage"],
        "models": [],
        "max_class": "interactive",
        "rpm": 5,
        "tpm": 1000,
        "itpm": 0,
        "otpm": 0,
        "concurrency": 2,
        "burst_s": 60,
        "tokens_per_day": 900,
        "tokens_per_month": 0,
        "money_per_day": 0,
        "money_per_month": 0,
        "reasoning_format": None,
        "answer_reserve": False,
        "expires_at": None,
        "old_secrets_end_at": [],
    }
    revoked = typed("keys", "revoke", made["id"], "--json")
    assert json.loads(revoked.stdout)["status"] == "revoked"
    assert [row["status"] for row in listed(typed)] == ["revoked"]


def test_people_get_sentences_and_a_table(typed: Command) -> None:
    made = typed("keys", "create", "--tenant", "acme", "--rpm", "5")
    secret = made.stdout.splitlines()[-1]
    match = SECRET.fullmatch(secret)
    assert match
    assert match[1] in made.stdout.splitlines()[0]
    table = typed("keys", "list").stdout
    assert match[1] in table
    assert secret not in table
    assert typed("keys", "revoke", match[1]).stdout == f"key {match[1]} is revoked\n"
    assert "revoked" in typed("keys", "list").stdout


def test_a_key_may_have_defaults_for_its_requests(typed: Command) -> None:
    create(typed)
    create(typed, "--reasoning-format", "split", "--answer-reserve")
    shown = [(row["reasoning_format"], row["answer_reserve"]) for row in listed(typed)]
    assert shown == [(None, False), ("split", True)]
    assert typed("keys", "create", "--tenant", "a", "--reasoning-format", "x").exit_code == 2


@pytest.mark.parametrize("label", ["[/x]", "[red]a[/red]", ":smile:", "\\[x]"])
def test_a_label_is_shown_as_it_was_typed(typed: Command, label: str) -> None:
    create(typed, "--label", label)
    assert f" {label} " in typed("keys", "list").stdout
    assert [row["label"] for row in listed(typed)] == [label]


def test_an_unknown_id_is_refused_and_nothing_is_made(typed: Command, state: Path) -> None:
    result = typed("keys", "revoke", "nosuch[/]")
    assert result.exit_code == 1
    assert "nosuch[/]" in result.stderr
    assert "deeprequest keys list" in result.stderr
    assert not state.exists()


@pytest.mark.parametrize("tenant", ["a b", "", "[/x]"])
def test_a_bad_tenant_name_is_refused(typed: Command, tenant: str) -> None:
    result = typed("keys", "create", "--tenant", tenant)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "tenant" in result.stderr
    assert listed(typed) == []


def test_reading_makes_nothing_on_disk(typed: Command, state: Path) -> None:
    assert listed(typed) == []
    assert typed("keys", "list").exit_code == 0
    result = typed("status")
    assert result.exit_code == 1
    assert f"no service runs on {state}" in result.stderr
    assert not state.exists()


def test_a_broken_key_file_is_named(typed: Command, state: Path) -> None:
    state.mkdir(parents=True)
    (state / "tenants.yaml").write_text("version: x")
    for words in (["list"], ["create", "--tenant", "a"], ["revoke", "x"]):
        result = typed("keys", *words)
        assert result.exit_code == 1
        assert f"{state / 'tenants.yaml'}, line 1: version: " in result.stderr


@pytest.mark.parametrize("words", [["status"], ["keys", "list"], ["keys", "create", "--tenant=a"]])
def test_a_bad_variable_is_an_error_line(
    typed: Command, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("DEEPREQUEST_PORT", "abc")
    result = typed(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: DEEPREQUEST_PORT: ")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("unix:///nowhere/redis.sock", "Redis"),
        ("nonsense", "admission.redis_url (DEEPREQUEST_REDIS_URL): "),
    ],
)
def test_a_redis_that_is_not_there_is_an_error_line(
    typed: Command, monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("DEEPREQUEST_REDIS_URL", url)
    result = typed("status")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {said}")
    assert said in typed("keys", "create", "--tenant", "a").stderr


def test_a_running_service_learns_of_keys_at_once_but_never_a_secret(
    redis: RedisServer, served: Path
) -> None:
    def typed(*words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--state-dir", str(served)])

    made = create(typed)
    digest = digest_of(made["secret"], (served / "pepper").read_bytes())
    assert asked(redis.url, "who", digest)[:3] == ["ok", made["id"], "acme"]
    body = made["secret"].split("-")[2].encode()
    files = [file for file in served.rglob("*") if file.is_file()]
    assert digest.encode() in (served / "redis/appendonly.aof").read_bytes()
    assert [file for file in files if body in file.read_bytes()] == []
    typed("keys", "revoke", made["id"])
    assert asked(redis.url, "who", digest) == ["auth", "revoked"]


def test_status_shows_replicas_and_ranks_of_the_running_service(
    redis: RedisServer, served: Path
) -> None:
    beat(redis.url)
    words = ["status", "--state-dir", str(served)]
    (replica,) = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["replicas"]
    assert (replica["id"], replica["kv_used"]) == ("r[/1]", 0.25)
    table = CliRunner().invoke(app, words, env={"COLUMNS": "200"}).stdout
    assert [word for word in ("r[/1]", "ready", "25%", "7@here") if word not in table] == []


def test_the_services_file_names_redis_pool_pepper_and_keys(
    redis: RedisServer, typed: Command, state: Path, tmp_path: Path
) -> None:
    config = tmp_path / "service.yaml"
    config.write_text(
        f"model: {{path: m}}\nadmission: {{redis_url: '{redis.url}', pool: blue, "
        "pepper_file: secrets/pepper, tenants_file: kept/tenants.yaml}\n"
    )
    named = ("--config", str(config))
    made = create(typed, *named)
    digest = digest_of(made["secret"], (tmp_path / "secrets/pepper").read_bytes())
    assert asked(redis.url, "who", digest, pool="blue")[:2] == ["ok", made["id"]]
    assert [row["id"] for row in listed(typed, *named)] == [made["id"]]
    assert (tmp_path / "kept/tenants.yaml").exists()
    beat(redis.url, pool="blue")
    found = json.loads(typed("status", "--json", *named).stdout)
    assert [replica["id"] for replica in found["replicas"]] == ["r[/1]"]
    assert typed("keys", "revoke", made["id"], *named).exit_code == 0
    assert asked(redis.url, "who", digest, pool="blue") == ["auth", "revoked"]
    assert not state.exists()


def test_a_mistake_in_the_services_file_is_an_error_line(typed: Command, tmp_path: Path) -> None:
    result = typed("status", "--config", str(tmp_path / "none.yaml"))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path}/none.yaml: ")


def test_help_comes_without_the_heavy_libraries() -> None:
    check = (
        "import sys; from typer.testing import CliRunner; from serve_app.cli import app\n"
        "for words in ('', 'keys create', 'status', 'serve', 'tenants set', 'limits self-test'):\n"
        "    assert CliRunner().invoke(app, [*words.split(), '--help']).exit_code == 0\n"
        "sys.exit(' '.join({'torch', 'ray', 'fastapi'} & set(sys.modules)) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
