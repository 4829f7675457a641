import stat
import threading
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from serve_app.tenancy.keys import (
    SECRET,
    KeyFile,
    KeyFileError,
    UnknownKey,
    digest_of,
    load_pepper,
    publish,
)
from serve_app.tenancy.limiter import Limits
from serve_app.tenancy.refusals import Unauthorized
from tests.serve_app.tenancy.world import World

PEPPER = b"p" * 64


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json", PEPPER)


def test_secret_has_the_published_form_and_is_written_nowhere(keys: KeyFile) -> None:
    created = keys.create("acme", Limits(rpm=5), label="ci")
    match = SECRET.fullmatch(created.secret)
    assert match is not None
    assert match[1] == created.key.id
    text = keys.path.read_text()
    assert match[2] not in text
    assert created.key.digest in text
    assert match[2] not in repr(created)
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    assert [p.name for p in keys.path.parent.iterdir() if p.name.startswith(".")] == []


def test_mistyped_secret_is_refused_by_its_checksum(keys: KeyFile) -> None:
    secret = keys.create("acme").secret
    for position in range(3, len(secret)):
        other = "a" if secret[position] != "a" else "b"
        with pytest.raises(Unauthorized):
            digest_of(secret[:position] + other + secret[position + 1 :], PEPPER)


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(Unauthorized):
        digest_of(text, PEPPER)


def test_digest_depends_on_the_pepper(keys: KeyFile) -> None:
    created = keys.create("acme")
    assert digest_of(created.secret, PEPPER) == created.key.digest
    assert digest_of(created.secret, b"q" * 64) != created.key.digest


def test_revoked_key_stays_listed_with_a_newer_version(keys: KeyFile) -> None:
    created = keys.create("acme")
    assert keys.revoke(created.key.id).version == 2
    assert keys.revoke(created.key.id).version == 2
    assert [key.status for key in keys.read().keys] == ["revoked"]
    with pytest.raises(UnknownKey):
        keys.revoke("nosuchid")


def test_two_writers_lose_no_key(keys: KeyFile) -> None:
    def create() -> None:
        other = KeyFile(keys.path, PEPPER)
        for _ in range(10):
            other.create("acme")

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    book = keys.read()
    assert (len(book.keys), book.version) == (40, 40)
    assert len({key.id for key in book.keys}) == 40


@pytest.mark.parametrize("tenant", ["", "a b", "a:b", "{a}", "-a", "a" * 65, "é", "a\n"])
def test_tenant_names_are_safe_in_keys_and_labels(keys: KeyFile, tenant: str) -> None:
    with pytest.raises(ValueError, match="tenant"):
        keys.create(tenant)
    with pytest.raises(ValueError, match="tenant"):
        keys.set_tenant(tenant, Limits())


def test_broken_file_is_named(keys: KeyFile) -> None:
    keys.path.write_text("{}}")
    with pytest.raises(KeyFileError, match=r"keys\.json"):
        keys.read()


def test_pepper_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "pepper"
    pepper = load_pepper(path)
    assert load_pepper(path) == pepper
    assert len(pepper) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("short")
    with pytest.raises(KeyFileError, match="pepper"):
        load_pepper(path)


@pytest.mark.anyio
async def test_older_record_never_replaces_a_newer_one(world: World) -> None:
    created = await world.key()
    old = world.keys.read()
    world.keys.revoke(created.key.id)
    await world.publish()
    await publish(world.store, old)
    status = await world.store.command(
        "HGET", f"{world.store.prefix}key:{created.key.digest}", "status"
    )
    assert status == "revoked"


@pytest.mark.anyio
async def test_many_keys_are_loaded_and_the_epoch_comes_last(world: World) -> None:
    for _ in range(300):
        created = world.keys.create("acme")
    epoch = await publish(world.store, world.keys.read())
    assert epoch == await publish(world.store, world.keys.read())
    reply = await world.store.run("who", created.key.digest)
    assert reply[:3] == ["ok", created.key.id, "acme"]
    assert await world.raw("XLEN", "aud") == 300


@pytest.mark.anyio
async def test_no_secret_is_anywhere_in_redis(world: World) -> None:
    created = await world.key(rpm=100)
    await world.replica()
    queue = await world.ingress()
    identity = await queue.identify(created.secret)
    ticket = await queue.admit(world.request(created))
    await ticket.settle(prompt_tokens=1, output_tokens=1)
    assert identity.key_id == created.key.id
    import redis

    client = redis.Redis(unix_socket_path=world.url.removeprefix("unix://"))
    client.config_set("save", "")
    client.save()
    folder = Path(world.url.removeprefix("unix://")).parent
    body = created.secret.split("-")[2].encode()
    for file in folder.iterdir():
        if file.is_file():
            content = file.read_bytes()
            assert body not in content, file
            assert world.pepper not in content, file
    assert created.key.digest.encode() in (folder / "appendonly.aof").read_bytes()
