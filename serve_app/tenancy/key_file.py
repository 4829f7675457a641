"""KeyFile: the durable source of keys and tenants, and every change of it.

Owns who may write when (one at a time, the whole file at once), that a change raises the version
and says who made it, and what rotating and revoking mean. Refuses to know Redis.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from serve_app.tenancy import durable_file
from serve_app.tenancy.key_defaults import KeyDefaults
from serve_app.tenancy.key_yaml import BookError, read_book, write_book
from serve_app.tenancy.keys import (
    ApiKey,
    Change,
    CreatedKey,
    KeyBook,
    OldSecret,
    Record,
    Tenant,
    check_tenant,
)
from serve_app.tenancy.limiter import Limits
from serve_app.tenancy.secret import digest_of, new_key_id, new_secret

Kept = TypeVar("Kept", bound=Record)
REMEMBERED_S = 86_400
"""How long a secret that was rotated away stays in the file after its end."""


class KeyFileError(ValueError):
    """The file cannot be used; the message names it, the line and the field."""


class UnknownKey(KeyError):
    """No key has that id."""


class KeyRevoked(ValueError):
    """The key is revoked and stays so."""

    def __init__(self) -> None:
        super().__init__("the key is revoked; make a new one")


class KeyFile:
    """Keys and tenants in a versioned YAML file of mode 0600."""

    def __init__(
        self, path: Path, pepper: bytes, *, by: str = "unknown", newer_than: int = 0
    ) -> None:
        """
        Args:
            pepper: what digests are keyed with; b"" where no key is made or rotated.
            by: who makes the changes, for the audit.
            newer_than: the version that a running service has: an older file is not its source, so
                it is not changed.
        """
        self.path, self._pepper, self._by, self._newer_than = path, pepper, by, newer_than

    def acting(self, by: str, newer_than: int) -> "KeyFile":
        """The same file, changed by somebody else."""
        return KeyFile(self.path, self._pepper, by=by, newer_than=newer_than)

    def read(self) -> KeyBook:
        """An empty book where there is no file. Raises KeyFileError."""
        try:
            return read_book(self.path.read_text())
        except FileNotFoundError:
            return KeyBook()
        except OSError as error:
            raise KeyFileError(f"{self.path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise KeyFileError(f"{self.path}: not a text file") from None
        except BookError as error:
            raise KeyFileError(f"{self.path}, {error}") from None

    def stamp(self) -> int:
        """Differs after every change; 0 while there is no file."""
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return 0

    def create(
        self,
        tenant: str,
        limits: Limits | None = None,
        defaults: KeyDefaults | None = None,
        *,
        label: str = "",
        expires_at: int = 0,
        shape: Callable[[ApiKey], ApiKey] = lambda key: key,
    ) -> CreatedKey:
        """Adds a key. `shape` gives it what has no argument here. Raises ValueError (a bad tenant
        name), KeyFileError, OSError."""
        made: list[CreatedKey] = []

        def add(book: KeyBook) -> KeyBook:
            while book.key(key_id := new_key_id()) is not None:
                pass
            secret = new_secret(key_id)
            key = ApiKey(
                id=key_id,
                digest=digest_of(secret, self._pepper),
                tenant=tenant,
                label=label,
                created_at=int(time.time()),
                expires_at=expires_at,
                limits=limits or Limits(),
                defaults=defaults or KeyDefaults(),
                changed=self._change("create", book),
            )
            made.append(CreatedKey(secret, _checked(shape(key), ApiKey)))
            return replace(book, keys=(*book.keys, made[-1].key))

        check_tenant(tenant)
        self._update(add)
        return made[-1]

    def change(self, key_id: str, change: Callable[[ApiKey], ApiKey], op: str = "change") -> ApiKey:
        """Replaces a key by `change` of it; where that is the same nothing is written.

        Raises:
            UnknownKey, KeyRevoked, KeyFileError, OSError, ValueError: a value is out of bounds.
        """

        def changed(key: ApiKey) -> ApiKey:
            if key.status == "revoked":
                raise KeyRevoked
            return change(key)

        return self._change_key(key_id, changed, op)

    def rotate(self, key_id: str, overlap_s: int = 0) -> CreatedKey:
        """A new secret for a key; the present one is good for another `overlap_s` seconds. An
        earlier one keeps its end. Raises as `change` does."""
        secret, now = new_secret(key_id), int(time.time())

        def rotated(key: ApiKey) -> ApiKey:
            live = tuple(old for old in key.old_secrets if old.until > now - REMEMBERED_S)
            last = OldSecret(digest=key.digest, until=now + overlap_s)
            digest = digest_of(secret, self._pepper)
            return replace(key, digest=digest, old_secrets=(*live, last))

        return CreatedKey(secret, self.change(key_id, rotated, "rotate"))

    def revoke(self, key_id: str) -> ApiKey:
        """Ends a key with all its secrets; revoking twice changes nothing. Raises as `change`."""
        return self._change_key(key_id, lambda key: replace(key, status="revoked"), "revoke")

    def forget(self, key_id: str) -> None:
        """Takes a key out of the file, which ends it. Raises as `revoke` does."""

        def without(book: KeyBook) -> KeyBook:
            if book.key(key_id) is None:
                raise UnknownKey(key_id)
            return replace(book, keys=tuple(key for key in book.keys if key.id != key_id))

        self._update(without)

    def set_tenant(self, name: str, limits: Limits, weight: int = 1) -> Tenant:
        """Limits over all of a tenant's keys. Raises as `change_tenant` does."""
        return self.change_tenant(name, lambda held: replace(held, limits=limits, weight=weight))

    def change_tenant(self, name: str, change: Callable[[Tenant], Tenant]) -> Tenant:
        """Replaces a tenant, which may be new, by `change` of it.

        Raises:
            ValueError, KeyFileError, OSError: a bad name or value; see `change`.
        """
        check_tenant(name)

        def update(book: KeyBook) -> KeyBook:
            held = book.tenants.get(name)
            new = _checked(change(held or Tenant()), Tenant)
            if new == held:
                return book
            new = replace(new, changed=self._change("set", book))
            return replace(book, tenants=book.tenants | {name: new})

        return self._update(update).tenants[name]

    def _change_key(self, key_id: str, change: Callable[[ApiKey], ApiKey], op: str) -> ApiKey:
        def update(book: KeyBook) -> KeyBook:
            key = book.key(key_id)
            if key is None:
                raise UnknownKey(key_id)
            new = _checked(change(key), ApiKey)
            if new == key:
                return book
            new = replace(new, changed=self._change(op, book))
            return replace(book, keys=tuple(new if one is key else one for one in book.keys))

        found = self._update(update).key(key_id)
        assert found is not None
        return found

    def _change(self, op: str, book: KeyBook) -> Change:
        return Change(op=op, by=self._by, at=int(time.time()), version=book.version + 1)

    def _update(self, change: Callable[[KeyBook], KeyBook]) -> KeyBook:
        with durable_file.locked(self.path):
            book = self.read()
            if book.version < self._newer_than:
                raise KeyFileError(
                    f"{self.path} has version {book.version}, but the running service has version "
                    f"{self._newer_than}: it was told by another file. Change that file, or raise "
                    f"`version` in this one above {self._newer_than} to let it rule"
                )
            new = change(book)
            if new is not book:
                new = replace(new, version=book.version + 1)
                durable_file.replace(self.path, write_book(new).encode())
        return new


def _checked(record: Record, kind: type[Kept]) -> Kept:
    """The record, held to what the file may say. Raises ValueError."""
    try:
        return msgspec.convert(msgspec.to_builtins(record), kind)
    except msgspec.ValidationError as error:
        problem, _, field = str(error).replace("`", "").partition(" - at $.")
        raise ValueError(f"{field}: {problem}" if field else problem) from None
