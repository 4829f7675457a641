"""Keys as typed: shown, changed, rotated, and what a running service learns of it."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from serve_app.tenancy.publishing import publish
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.secret import digest_of
from serve_app.tenancy.store import Store
from tests.serve_app.typed import Command, command_on


def told(typed: Command, *words: str) -> Any:
    result = typed(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_what_a_key_may_do_is_set_when_it_is_made_and_changed_in_part(typed: Command) -> None:
    words = ("--rpm", "5", "--scope", "inference", "--scope", "admin", "--model", "a/b")
    more = ("--max-class", "batch", "--expires", "30d", "--money-per-day", "12.50", "--burst", "30")
    made = told(typed, "keys", "create", "--tenant", "acme", *words, *more)
    key = told(typed, "keys", "show", made["id"])
    assert (key["rpm"], key["burst_s"], key["money_per_day"]) == (5, 30, 12_500_000)
    assert (key["scopes"], key["models"]) == (["inference", "admin"], ["a/b"])
    assert key["max_class"] == "batch"
    assert abs(key["expires_at"] - time.time() - 30 * 86_400) < 60
    told(typed, "keys", "limits", made["id"], "--tpm", "900", "--model", "", "--expires", "never")
    changed = told(typed, "keys", "show", made["id"])
    assert changed["changed"].pop("op") == "limits"
    assert changed["changed"]["by"].startswith("cli:")
    expected = key | {"tpm": 900, "models": [], "expires_at": None, "changed": changed["changed"]}
    assert changed == expected


def test_people_see_a_key_in_words(typed: Command) -> None:
    made = told(
        typed, "keys", "create", "--tenant", "acme", "--expires", "2090-01-31", "--rpm", "7"
    )
    shown = typed("keys", "show", made["id"]).stdout
    for words in (made["id"], "2090-01-31 00:00 UTC", "inference, usage", "op: create"):
        assert words in shown
    assert made["secret"] not in shown
    assert "2090-01-31" in typed("keys", "list", "--tenant", "acme").stdout
    assert told(typed, "keys", "list", "--tenant", "other") == {"keys": []}


def test_a_rotated_keys_new_secret_is_shown_once_with_the_old_ones_end(typed: Command) -> None:
    made = told(typed, "keys", "create", "--tenant", "acme")
    rotated = told(typed, "keys", "rotate", made["id"], "--overlap", "2h")
    assert rotated["id"] == made["id"]
    assert rotated["secret"] != made["secret"]
    assert abs(rotated["old_secret_ends_at"] - time.time() - 7200) < 60
    lines = typed("keys", "rotate", made["id"]).stdout.splitlines()
    assert lines[0].startswith(f"key {made['id']}: its old secret ends ")
    assert lines[1].startswith(f"dr-{made['id']}-")
    key = told(typed, "keys", "show", made["id"])
    assert len(key["old_secrets_end_at"]) == 2
    assert abs(key["old_secrets_end_at"][1] - time.time() - 86_400) < 60


@pytest.mark.parametrize(
    ("words", "code", "told_of"),
    [
        (("show", "nosuchid"), 1, "`deeprequest keys list` shows them"),
        (("rotate", "nosuchid"), 1, "`deeprequest keys list` shows them"),
        (("limits", "nosuchid", "--rpm", "1"), 1, "`deeprequest keys list` shows them"),
        (("create", "--tenant", "a", "--scope", "root"), 1, "scopes[0]: Invalid enum value 'root'"),
        (("create", "--tenant", "a", "--model", "a,b"), 1, "models has at most"),
        (("create", "--tenant", "a", "--rpm", "1", "--burst", "1"), 1, "raise burst_s to 60"),
        (("create", "--tenant", "a", "--money-per-day", "1.2345678"), 2, "six decimals"),
        (("create", "--tenant", "a", "--expires", "soon"), 2, "30d"),
        (("create", "--tenant", "a", "--max-class", "first"), 2, "interactive"),
        (("rotate", "nosuchid", "--overlap", "1w"), 2, "24h"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(
    typed: Command, words: tuple[str, ...], code: int, told_of: str
) -> None:
    result = typed("keys", *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert told_of in " ".join(result.stderr.replace("│", " ").split())


def test_a_revoked_key_cannot_be_rotated(typed: Command) -> None:
    made = told(typed, "keys", "create", "--tenant", "acme")
    told(typed, "keys", "revoke", made["id"])
    result = typed("keys", "rotate", made["id"])
    assert result.exit_code == 1
    assert "the key is revoked; make a new one" in result.stderr


def test_a_file_that_is_not_the_services_source_is_refused(
    typed: Command, redis: RedisServer, monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    made = told(typed, "keys", "create", "--tenant", "acme")

    async def newer() -> None:
        from serve_app.tenancy.keys import KeyBook

        async with Store(redis.url, timeout_s=3.0) as store:
            await publish(store, KeyBook(version=40))

    asyncio.run(newer())
    monkeypatch.setenv("DEEPREQUEST_REDIS_URL", redis.url)
    before = (state / "tenants.yaml").read_text()
    for words in (("create", "--tenant", "b"), ("revoke", made["id"])):
        result = typed("keys", *words)
        assert result.exit_code == 1
        assert "version 1, but the running service has version 40" in result.stderr
    assert (state / "tenants.yaml").read_text() == before


def test_a_running_service_knows_either_secret_of_a_rotated_key(
    typed: Command, tmp_path: Path
) -> None:
    del typed  # no settings around
    with RedisServer(tmp_path / "redis") as server:
        on = command_on(tmp_path)
        made = told(on, "keys", "create", "--tenant", "acme")
        rotated = told(on, "keys", "rotate", made["id"])
        pepper = (tmp_path / "pepper").read_bytes()

        async def who(secret: str) -> Any:
            async with Store(server.url, timeout_s=3.0) as store:
                return await store.run("who", digest_of(secret, pepper))

        for secret in (made["secret"], rotated["secret"]):
            assert asyncio.run(who(secret))[:2] == ["ok", made["id"]]
        ops = [entry["op"] for entry in told(on, "audit")["audit"]]
        assert ops == ["rotate", "load"]
