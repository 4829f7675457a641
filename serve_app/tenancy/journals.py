"""Journals: what Redis has yet to hear, of this ingress and of dead ones on the same folder.

Owns that all of it is told (REPLAY), a few entries at a time, oldest first, and that nothing is
forgotten before it was heard. The files themselves are journal.py's.
"""

import itertools
from pathlib import Path

import structlog

from serve_app.tenancy.journal import Entry, Journal, inherited
from serve_app.tenancy.store import Store

CHUNK = 16
"""Entries a step: each costs Redis some 40 us, and a script holds everybody up."""

log = structlog.get_logger(__name__)


class Journals:
    """The own one, and those that were left."""

    def __init__(self, folder: Path, ingress: str) -> None:
        """Raises JournalError: the folder cannot be written."""
        self._own = Journal(folder / f"{ingress}.jsonl")
        self._left = inherited(folder, self._own.path)

    @property
    def unheard_bytes(self) -> int:
        """Of entries that Redis has not heard of."""
        return sum(journal.unheard_bytes for journal in (*self._left, self._own))

    def append(self, entry: Entry) -> None:
        """Keeps an entry; what no disk takes is told in the log, and charged to nobody."""
        try:
            self._own.append(entry)
        except OSError as error:
            log.error("journal_unwritable", error=str(error), rid=entry.rid, key=entry.key_id)

    async def sync(self) -> None:
        """Brings the own one to the disk. Raises OSError."""
        await self._own.sync()

    async def replay(self, store: Store) -> None:
        """Tells Redis all of it. Raises StoreUnavailable, StoreError."""
        for journal in (*self._left, self._own):
            while entries := journal.read(CHUNK):
                told = itertools.chain.from_iterable(entry.told() for entry in entries)
                if await store.run("replay", *told) < 0:
                    return  # Redis is empty: the next beat fills it
                journal.done()
        while self._left:
            self._left.pop().close()

    def close(self) -> None:
        """Empty ones go; others stay for the next ingress."""
        for journal in (*self._left, self._own):
            journal.close()
