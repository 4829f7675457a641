import stat
import threading
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from serve_app.tenancy.key_file import KeyFile, KeyFileError, KeyRevoked, UnknownKey
from serve_app.tenancy.keys import Tenant
from serve_app.tenancy.limiter import Limits
from serve_app.tenancy.secret import SECRET, digest_of

PEPPER = b"p" * 64


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "tenants.yaml", PEPPER, by="tests")


def test_a_secret_is_written_nowhere(keys: KeyFile) -> None:
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


def test_revoked_key_stays_listed_and_every_change_tells_who_made_it(keys: KeyFile) -> None:
    created = keys.create("acme")
    keys.change(created.key.id, lambda key: replace(key, limits=Limits(rpm=7)))
    assert keys.revoke(created.key.id) == keys.revoke(created.key.id)
    book = keys.read()
    assert book.version == 3
    (key,) = book.keys
    assert (key.status, key.limits.rpm) == ("revoked", 7)
    assert key.changed is not None
    assert (key.changed.op, key.changed.by) == ("revoke", "tests")
    assert abs(key.changed.at - time.time()) < 60
    with pytest.raises(UnknownKey):
        keys.revoke("nosuchid")


def test_a_change_that_changes_nothing_writes_nothing(keys: KeyFile) -> None:
    created = keys.create("acme")
    stamp = keys.stamp()
    assert keys.change(created.key.id, lambda key: key) == created.key
    assert (keys.stamp(), keys.read().version) == (stamp, 1)


def test_a_rotated_key_keeps_its_old_secret_for_the_overlap(keys: KeyFile) -> None:
    created = keys.create("acme", Limits(rpm=5))
    first = keys.rotate(created.key.id, overlap_s=3600)
    second = keys.rotate(created.key.id)
    digests = [digest_of(one.secret, PEPPER) for one in (created, first, second)]
    assert len(set(digests)) == 3
    (key,) = keys.read().keys
    assert key == second.key
    assert (key.digest, key.limits.rpm) == (digests[2], 5)
    assert [old.digest for old in key.old_secrets] == digests[:2]
    ends = [old.until - time.time() for old in key.old_secrets]
    assert 3500 < ends[0] <= 3600
    assert ends[1] <= 0


def test_a_secret_that_ended_long_ago_is_forgotten(keys: KeyFile) -> None:
    created = keys.create("acme")
    keys.rotate(created.key.id, overlap_s=-2 * 86_400)
    assert len(keys.rotate(created.key.id).key.old_secrets) == 1


def test_a_revoked_key_is_neither_rotated_nor_changed(keys: KeyFile) -> None:
    key_id = keys.revoke(keys.create("acme").key.id).id
    with pytest.raises(KeyRevoked):
        keys.rotate(key_id)
    with pytest.raises(KeyRevoked):
        keys.change(key_id, lambda key: replace(key, label="x"))


def test_a_tenant_is_changed_in_part(keys: KeyFile) -> None:
    keys.set_tenant("acme", Limits(rpm=5), weight=3)
    keys.change_tenant("acme", lambda held: replace(held, max_class="batch"))
    held = keys.read().tenants["acme"]
    assert (held.limits.rpm, held.weight, held.max_class) == (5, 3, "batch")
    for weight in (0, 101):
        with pytest.raises(ValueError, match="weight"):
            keys.set_tenant("acme", Limits(), weight)
    assert replace(keys.change_tenant("new", lambda held: held), changed=None) == Tenant()


def test_what_the_file_may_not_say_is_not_written(keys: KeyFile) -> None:
    created = keys.create("acme")
    with pytest.raises(ValueError, match="label"):
        keys.change(created.key.id, lambda key: replace(key, label="x" * 300))
    with pytest.raises(ValueError, match="label"):
        keys.create("acme", label="x" * 300)
    for tenant in ("a b", ""):
        with pytest.raises(ValueError, match="tenant"):
            keys.create(tenant)
        with pytest.raises(ValueError, match="tenant"):
            keys.set_tenant(tenant, Limits())
    assert keys.read().keys == (created.key,)


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


def test_a_file_that_is_not_the_services_source_is_not_changed(keys: KeyFile) -> None:
    keys.create("acme")
    before = keys.path.read_bytes()
    stale = KeyFile(keys.path, PEPPER, newer_than=7)
    with pytest.raises(KeyFileError, match=r"version 1, but the running service has version 7"):
        stale.create("acme")
    assert keys.path.read_bytes() == before
    assert KeyFile(keys.path, PEPPER, newer_than=1).create("acme")


def test_a_broken_file_is_named_with_line_and_field_and_left_alone(keys: KeyFile) -> None:
    keys.path.write_text("version: 1\nkeys: 3\n")
    for call in (keys.read, lambda: keys.create("acme")):
        with pytest.raises(KeyFileError, match=r"tenants\.yaml, line 2: keys: Expected array"):
            call()
    assert keys.path.read_text() == "version: 1\nkeys: 3\n"
    keys.path.write_bytes(b"\xff")
    with pytest.raises(KeyFileError, match="not a text file"):
        keys.read()
