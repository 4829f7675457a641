"""Journal: requests that ended while Redis was away, on disk until Redis has heard of them.

Owns one append-only file per ingress, `<folder>/<ingress>.jsonl`, mode 0600, locked by the process
that writes it: what a dead ingress left is replayed by the next that starts on the folder. Holds
ids, counts and a key's digest; never a prompt or a secret. Refuses to know Redis.

An entry is in the file, by one write, before its request counts as settled: a killed process loses
none. `sync` brings them to the disk; call it each second: a power cut loses no more than that. An
entry may be told twice (the process may die before `done`), so whoever hears it counts by its rid.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

READ_BYTES = 64 * 1024

log = structlog.get_logger(__name__)


class JournalError(OSError):
    """The folder cannot be written; the message names the setting."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One settled request, counts in tokens."""

    rid: str
    digest: str
    key_id: str
    tenant: str
    service_class: str
    model: str
    price: str
    outcome: str
    prompt: int
    cached: int
    output: int
    reasoning: int
    ran_ms: int

    def told(self) -> tuple[str | int, ...]:
        """In the order of scripts/replay.lua."""
        return msgspec.structs.astuple(self)


class Journal:
    """A file of entries, read from the front and emptied when all of it was heard."""

    def __init__(self, path: Path) -> None:
        """Opens and locks the file, made where it is missing.

        Raises:
            BlockingIOError: another process writes it.
            JournalError: it cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            raise JournalError(
                f"{path}: {error.strerror}; requests served while Redis is away are kept there: "
                "set state_dir to a folder that can be written, or admission.on_outage to closed"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise
        self._size = os.fstat(self._file).st_size
        self._heard = self._read_to = 0
        self._synced = self._size

    @property
    def unheard_bytes(self) -> int:
        """Of entries that nobody has heard yet."""
        return self._size - self._heard

    def append(self, entry: Entry) -> None:
        """Raises OSError when the disk is full; the entry is then not in the file."""
        line = msgspec.json.encode(entry) + b"\n"
        if os.write(self._file, line) != len(line):
            os.ftruncate(self._file, self._size)
            raise OSError("the disk is full")
        self._size += len(line)

    def read(self, most: int) -> list[Entry]:
        """The oldest entries that were not heard, at most `most`."""
        chunk = os.pread(self._file, READ_BYTES, self._heard)
        whole = chunk[: chunk.rfind(b"\n") + 1] or chunk  # what has no end was torn by a crash
        lines = whole.splitlines(keepends=True)[:most]
        self._read_to = self._heard + sum(map(len, lines))
        return list(_decoded(lines, self.path))

    def done(self) -> None:
        """What `read` returned last was heard."""
        self._heard = self._read_to
        if self._heard >= self._size:
            os.ftruncate(self._file, 0)
            self._size = self._heard = self._read_to = self._synced = 0

    async def sync(self) -> None:
        """Brings what was appended to the disk."""
        if self._synced < self._size:
            size = self._size
            await asyncio.to_thread(os.fdatasync, self._file)
            self._synced = min(size, self._size)

    def close(self) -> None:
        """An empty file goes; another stays for the next ingress."""
        if self._size == 0:
            self.path.unlink(missing_ok=True)
        else:
            os.fdatasync(self._file)
        os.close(self._file)


def inherited(folder: Path, own: Path) -> list[Journal]:
    """What dead ingresses left in `folder`."""
    journals = []
    for path in sorted(folder.glob("*.jsonl")):
        if path != own:
            with contextlib.suppress(BlockingIOError):
                journals.append(Journal(path))
    return journals


def _decoded(lines: list[bytes], path: Path) -> Iterator[Entry]:
    for line in lines:
        try:
            yield msgspec.json.decode(line, type=Entry)
        except msgspec.MsgspecError:
            log.error("journal_entry_unreadable", file=str(path), bytes=len(line))
