"""Publishing: a book of keys into Redis, where every ingress reads it.

Owns the fields of the records there. Who is newer and what goes into the audit is decided by
scripts/conf.lua, in the step that writes.
"""

import hashlib
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import structlog

from serve_app.tenancy.keys import ApiKey, Change, KeyBook
from serve_app.tenancy.store import Store

CHUNK = 64
Fields = dict[str, str | int]
Entry = tuple[str, str, Fields | None]
"""Kind, name, and what Redis shall hold; None: no longer there."""

log = structlog.get_logger(__name__)


class Published(NamedTuple):
    """What Redis holds after a book was published."""

    epoch: str
    """Changes when Redis has lost everything."""
    version: int
    """Of the newest book that it has seen."""
    changed: int
    """Records that were not so before."""


async def publish(store: Store, book: KeyBook) -> Published:
    """Loads the book into Redis (CONF). Repeating it changes nothing; what the book no longer has
    is refused from now on; an older book than the one there is told in the log and changes nothing.

    Raises StoreUnavailable.
    """
    entries = [*_entries(book)]
    if book.version:
        entries += await _gone(store, entries)
    proposed, changed = secrets.token_hex(8), 0
    for start in range(0, max(1, len(entries)), CHUNK):
        last = start + CHUNK >= len(entries)
        chunk = msgspec.json.encode(entries[start : start + CHUNK]).decode()
        # the epoch is set with the last chunk: nobody is refused while keys are still being loaded
        epoch, taken, version = await store.run(
            "conf", proposed if last else "", book.version, chunk
        )
        changed += max(0, taken)
    if version > book.version > 0:
        log.warning("key_file_is_older", version=book.version, running_version=version)
    return Published(str(epoch), int(version), changed)


async def running_version(store: Store) -> int:
    """The version of the newest book that Redis has seen. Raises StoreUnavailable."""
    _, _, version = await store.run("conf", "", 0, "[]")
    return int(version)


async def _gone(store: Store, entries: list[Entry]) -> list[Entry]:
    known = await store.command("SMEMBERS", f"{store.prefix}known")
    gone = set(known) - {f"{kind}:{name}" for kind, name, _ in entries}
    return [(*member.split(":", 1), None) for member in sorted(gone)]


def _entries(book: KeyBook) -> Iterator[Entry]:
    for name, tenant in book.tenants.items():
        fields: Fields = {"weight": tenant.weight, "class": tenant.max_class}
        fields |= tenant.limits.fields()
        yield "ten", name, _told(fields, tenant.changed)
    for key in book.keys:
        yield "key", key.digest, _told(_key_fields(key, book), key.changed)
        for old in key.old_secrets:
            ends = min(old.until, key.expires_at or old.until)
            fields = _key_fields(key, book) | {"expires": ends, "old": 1}
            yield "key", old.digest, _told(fields, key.changed)


def _key_fields(key: ApiKey, book: KeyBook) -> Fields:
    about: Fields = {
        "id": key.id,
        "ten": key.tenant,
        "status": key.status,
        "expires": key.expires_at,
        "scopes": ",".join(key.scopes),
        "models": ",".join(key.models),
        "class": book.class_of(key),
    }
    return about | key.limits.fields() | key.defaults.fields()


def _told(fields: dict[str, Any], changed: Change | None) -> Fields:
    """With a print, by which CONF sees whether it is new, and who changed it last."""
    text = msgspec.json.encode(fields, order="sorted")
    told = changed or Change(op="", by="", at=0, version=0)
    print_ = hashlib.blake2b(text, digest_size=8).hexdigest()
    return fields | {"print": print_} | msgspec.structs.asdict(told)
