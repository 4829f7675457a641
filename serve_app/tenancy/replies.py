"""Replies: what became of the requests that came with an Idempotency-Key.

Owns the names under which they are found (only digests of key and content reach Redis), who may
run one, and how long and how many replies are kept. Refuses to know HTTP and what a reply says.

    claim ──► Claim: run it, then keep its reply, or drop the claim
          ├─► StoredReply: it has run
          └─► StillRunning, ReplyNotKept, NameReused: refusals
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from serve_app.tenancy.refusals import Refusal
from serve_app.tenancy.store import Store

LONGEST_WAIT_S = 60.0


class ReplySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of what is kept."""

    keep_s: float = 86_400.0
    """A reply is forgotten after so long."""
    most_bytes: int = 64 * 2**20
    """Of all replies together; the oldest go first."""
    largest_bytes: int = 2**20
    """Of one reply; a larger one is not kept."""
    longest_run_s: float = 3600.0
    """A claim that nobody ended by then is void."""


class Claim(NamedTuple):
    """The right to run a request and to keep its reply."""

    name: str
    secret: str


class StoredReply(NamedTuple):
    """What was answered."""

    status: int
    headers: Mapping[str, str]
    body: str


class StillRunning(Refusal):
    """409: the request of that name runs; ask again for its reply."""

    code = "idempotency_in_progress"

    def __init__(self, since_s: float) -> None:
        """The wait grows with the age of the run, so that few questions cover a long one."""
        super().__init__(
            "A request with this Idempotency-Key is still running. Its reply will be given to you "
            "when you send the request again.",
            retry_after_s=min(max(since_s, 1.0), LONGEST_WAIT_S),
        )


class ReplyNotKept(Refusal):
    """409: the request of that name has run, and its reply was too large to be kept."""

    code = "idempotency_reply_not_kept"

    def __init__(self) -> None:
        super().__init__(
            "The request with this Idempotency-Key was answered, but the answer was too large to "
            "be kept. Use a new Idempotency-Key to generate another one."
        )

    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false"}


class NameReused(Refusal):
    """422: the name belongs to another request."""

    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was used for another request. Use a new key for each request."
        )


class Replies:
    """Claims and kept replies of one pool, as one ingress sees them."""

    def __init__(self, store: Store, ingress: str, settings: ReplySettings | None = None) -> None:
        """`ingress`: whose lease ends the claims made here."""
        self._store, self._ingress = store, ingress
        self._settings = settings or ReplySettings()

    async def claim(self, key_id: str, name: str, content: bytes) -> Claim | StoredReply:
        """The right to run the request that an API key calls `name`, or its reply.

        Raises:
            StillRunning, ReplyNotKept, NameReused: see there.
            StoreUnavailable: Redis does not answer.
        """
        claim = Claim(_digest(f"{key_id}\0{name}".encode()), secrets.token_hex(8))
        longest_us = round(self._settings.longest_run_s * 1e6)
        reply = await self._store.run(
            "claim", claim.name, _digest(content), claim.secret, self._ingress, longest_us
        )
        match reply:
            case ["mine"]:
                return claim
            case ["kept", status, headers, body]:
                return StoredReply(status, json.loads(headers), body)
            case ["runs", since_us]:
                raise StillRunning(since_us / 1e6)
            case ["large"]:
                raise ReplyNotKept
            case ["other"]:
                raise NameReused
        raise AssertionError(f"CLAIM said {reply[0]}")

    async def keep(self, claim: Claim, reply: StoredReply) -> None:
        """The claim's request was answered. Raises StoreUnavailable."""
        settings = self._settings
        await self._store.run(
            "keep",
            *claim,
            round(settings.keep_s * 1e6),
            settings.most_bytes,
            settings.largest_bytes,
            reply.status,
            json.dumps(dict(reply.headers)),
            reply.body,
        )

    async def drop(self, claim: Claim) -> None:
        """The claim's request was not answered and may be run again. Raises StoreUnavailable."""
        await self._store.run("drop", *claim)


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16).hexdigest()
