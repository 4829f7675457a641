"""KeyAdmin: keys and tenants as a running ingress changes them.

Owns that a change is made in the file first, by one writer at a time, and told to Redis before it
is answered; and that an ingress whose file is not the service's source neither shows nor changes
it. Refuses to know HTTP.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from serve_app.tenancy.key_file import KeyFile, KeyFileError
from serve_app.tenancy.keys import KeyBook
from serve_app.tenancy.publishing import publish, running_version
from serve_app.tenancy.store import Store

Result = TypeVar("Result")


class KeyAdmin:
    """The key file of one ingress and the Redis of its pool."""

    def __init__(self, store: Store, keys: KeyFile) -> None:
        self.store, self._keys = store, keys

    async def book(self) -> KeyBook:
        """The keys in force.

        Raises:
            KeyFileError: the file cannot be read, or is older than what Redis was told.
            StoreUnavailable: Redis does not answer.
        """
        book = await asyncio.to_thread(self._keys.read)
        version = await running_version(self.store)
        if book.version < version:
            raise KeyFileError(f"the file has version {book.version}, Redis has {version}")
        return book

    async def change(self, by: str, work: Callable[[KeyFile], Result]) -> Result:
        """Does `work` on the file as `by` and publishes it.

        Raises:
            KeyFileError, StoreUnavailable: as `book` does; nothing is changed then.
            UnknownKey, KeyRevoked, ValueError, OSError: as `work` does.
        """
        version = await running_version(self.store)
        keys = self._keys.acting(by, version)
        done = await asyncio.to_thread(work, keys)
        await publish(self.store, await asyncio.to_thread(keys.read))
        return done
