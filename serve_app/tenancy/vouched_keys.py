"""VouchedKeys: the keys that Redis has called good, and when it last did.

Owns for how long its word is trusted. Decides nothing about limits; a bounded memory, oldest out.
"""

import time
from collections.abc import Callable

import msgspec

from serve_app.tenancy.admission import Identity
from serve_app.tenancy.refusals import StoreUnavailable

MOST_KEYS = 10_000


class _Vouched(msgspec.Struct, frozen=True):
    identity: Identity
    at: float


class VouchedKeys:
    """What an ingress remembers of keys for the time when Redis is away."""

    def __init__(self, trust_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._trust_s, self._clock = trust_s, clock
        self._keys: dict[str, _Vouched] = {}

    def note(self, identity: Identity) -> None:
        """Redis has just called it good."""
        if identity.digest not in self._keys and len(self._keys) >= MOST_KEYS:
            del self._keys[next(iter(self._keys))]
        self._keys[identity.digest] = _Vouched(identity, self._clock())

    def drop(self, digest: str) -> None:
        """Redis has just refused it."""
        self._keys.pop(digest, None)

    def find(self, digest: str) -> Identity:
        """Raises StoreUnavailable: Redis has not vouched for the key lately."""
        vouched = self._keys.get(digest)
        if vouched is None or self._clock() > vouched.at + self._trust_s:
            raise StoreUnavailable("Redis has not vouched for this key lately")
        return vouched.identity
