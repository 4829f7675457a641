"""API keys: secrets, digests, and the file they are kept in.

Owns the form of a secret, `dr-<id8>-<43 base62><6 base62 checksum>`: the id is for people and logs,
the checksum refuses typing errors without asking Redis. A secret is shown once and stored nowhere;
the file and Redis hold its HMAC-SHA256 under a pepper. Refuses to know requests and queues.
"""

import binascii
import contextlib
import fcntl
import hmac
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from serve_app.tenancy.limiter import Limits
from serve_app.tenancy.refusals import Unauthorized
from serve_app.tenancy.store import Store

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
SECRET = re.compile(r"dr-([a-z0-9]{8})-([0-9A-Za-z]{43})([0-9A-Za-z]{6})", re.ASCII)
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
CHUNK = 128


class KeyFileError(ValueError):
    """The key file or the pepper cannot be used; the message names the file and the remedy."""


class UnknownKey(KeyError):
    """No key has that id."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key as it is kept: everything but its secret."""

    id: str
    digest: str
    tenant: str
    label: str = ""
    status: str = "active"
    """active or revoked."""
    created_at: int
    expires_at: int = 0
    """Unix seconds; 0: never."""
    limits: Limits = Limits()
    version: int = 1


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """Limits over all keys of a tenant, and its weight in the fair queue."""

    limits: Limits = Limits()
    weight: int = 1
    version: int = 1


class KeyBook(msgspec.Struct, frozen=True, kw_only=True):
    """The file's content."""

    version: int = 0
    keys: list[ApiKey] = []
    tenants: dict[str, Tenant] = {}


class CreatedKey(msgspec.Struct, frozen=True):
    """A new key with the only copy of its secret."""

    secret: str
    key: ApiKey

    def __repr__(self) -> str:
        return f"CreatedKey(id={self.key.id!r})"


def load_pepper(path: Path) -> bytes:
    """The secret that digests are keyed with; made (32 random bytes, mode 0600) when missing."""
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            draft = _draft(path, secrets.token_hex(32).encode())
            try:
                os.link(draft, path)  # whoever comes second keeps the first's
            finally:
                draft.unlink()
    try:
        pepper = path.read_bytes().strip()
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None
    if len(pepper) < 32:
        raise KeyFileError(f"{path}: a pepper has at least 32 characters; restore the file")
    return pepper


def digest_of(secret: str, pepper: bytes) -> str:
    """HMAC-SHA256 in hex, under which a key is looked up.

    Raises:
        Unauthorized: not a secret of ours, or mistyped; Redis need not be asked.
    """
    match = SECRET.fullmatch(secret)
    if match is None:
        raise Unauthorized("malformed")
    head = f"dr-{match[1]}-{match[2]}"
    if not hmac.compare_digest(_checksum(head), match[3]):
        raise Unauthorized("malformed")
    return hmac.new(pepper, secret.encode(), "sha256").hexdigest()


class KeyFile:
    """Keys in a versioned JSON file: replaced as a whole, written under a lock, mode 0600."""

    def __init__(self, path: Path, pepper: bytes) -> None:
        self.path, self._pepper = path, pepper

    def read(self) -> KeyBook:
        """Raises KeyFileError when the file is there but not readable as keys."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=KeyBook)
        except FileNotFoundError:
            return KeyBook()
        except OSError as error:
            raise KeyFileError(f"{self.path}: {error.strerror}") from None
        except msgspec.MsgspecError as error:
            raise KeyFileError(f"{self.path}: not a key file: {error}") from None

    def stamp(self) -> int:
        """Differs after every change; 0 while there is no file."""
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return 0

    def create(
        self, tenant: str, limits: Limits | None = None, *, label: str = "", expires_at: int = 0
    ) -> CreatedKey:
        """Adds a key. Raises ValueError for a bad tenant name (see `check_tenant`)."""
        check_tenant(tenant)
        with self._locked() as book:
            taken = {key.id for key in book.keys}
            while (key_id := _letters(ID_LETTERS, 8)) in taken:
                pass
            head = f"dr-{key_id}-{_letters(BASE62, 43)}"
            secret = head + _checksum(head)
            key = ApiKey(
                id=key_id,
                digest=digest_of(secret, self._pepper),
                tenant=tenant,
                label=label,
                created_at=int(time.time()),
                expires_at=expires_at,
                limits=limits or Limits(),
            )
            self._write(book, keys=[*book.keys, key])
        return CreatedKey(secret, key)

    def revoke(self, key_id: str) -> ApiKey:
        """Raises UnknownKey. Revoking twice changes nothing."""
        with self._locked() as book:
            key = next((key for key in book.keys if key.id == key_id), None)
            if key is None:
                raise UnknownKey(key_id)
            if key.status != "revoked":
                revoked = msgspec.structs.replace(key, status="revoked", version=key.version + 1)
                self._write(book, keys=[revoked if k is key else k for k in book.keys])
                key = revoked
        return key

    def set_tenant(self, name: str, limits: Limits, weight: int = 1) -> Tenant:
        """Limits over all of a tenant's keys. Raises ValueError for a bad name or weight."""
        check_tenant(name)
        if not 1 <= weight <= 100:
            raise ValueError("weight must be between 1 and 100")
        with self._locked() as book:
            held = book.tenants.get(name)
            tenant = Tenant(limits=limits, weight=weight, version=held.version + 1 if held else 1)
            self._write(book, tenants=book.tenants | {name: tenant})
        return tenant

    @contextlib.contextmanager
    def _locked(self) -> Iterator[KeyBook]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.read()
        finally:
            os.close(lock)

    def _write(self, book: KeyBook, **changes: Any) -> None:
        new = msgspec.structs.replace(book, version=book.version + 1, **changes)
        text = msgspec.json.format(msgspec.json.encode(new), indent=1) + b"\n"
        os.replace(_draft(self.path, text), self.path)


async def publish(store: Store, book: KeyBook) -> str:
    """Loads the book into Redis (CONF): newer records win, repeating it changes nothing.

    Returns the epoch: it changes when Redis has lost everything. Raises StoreUnavailable.
    """
    records = [_key_record(key) for key in book.keys]
    records += [["ten", name, t.version, _tenant_fields(t)] for name, t in book.tenants.items()]
    proposed, epoch = secrets.token_hex(8), ""
    for start in range(0, max(1, len(records)), CHUNK):
        last = start + CHUNK >= len(records)
        chunk = msgspec.json.encode(records[start : start + CHUNK]).decode()
        # the epoch is set with the last chunk: nobody is refused while keys are still being loaded
        epoch, _ = await store.run("conf", proposed if last else "", chunk)
    return str(epoch)


def check_tenant(name: str) -> None:
    """Raises ValueError when `name` cannot be part of a Redis key and a metric label."""
    if TENANT.fullmatch(name) is None:
        raise ValueError("a tenant's name has 1 to 64 letters of A-Z, a-z, 0-9, '.', '_' and '-'")


def _key_record(key: ApiKey) -> list[Any]:
    about = {"id": key.id, "ten": key.tenant, "status": key.status, "expires": key.expires_at}
    return ["key", key.digest, key.version, about | key.limits.fields()]


def _tenant_fields(tenant: Tenant) -> dict[str, int]:
    return tenant.limits.fields() | {"weight": tenant.weight}


def _checksum(head: str) -> str:
    value, letters = binascii.crc32(head.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        letters = BASE62[digit] + letters
    return letters


def _letters(alphabet: str, count: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(count))


def _draft(path: Path, content: bytes) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)
