"""SelfTest: proof, over HTTP, that a running service enforces what its keys may do.

Owns the checks: each makes a key, sends real requests of one token, and compares what comes back.
The keys are revoked and taken out of the file again, whatever happens. Trusts nothing but status
codes and headers; reads no Redis.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.message import Message
from functools import partial
from typing import Any, NamedTuple

from serve_app.commands.source import Source
from serve_app.tenancy.key_settings import set_key
from serve_app.tenancy.keys import CreatedKey

TENANT = "self-test"
TIMEOUT_S = 120.0
KEYS_LIVE_S = 600


class Check(NamedTuple):
    """One thing that must hold."""

    what: str
    expected: str
    found: str
    passed: bool


class Reply(NamedTuple):
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """Of the error."""
        return str(json.loads(self.body).get("error", {}).get("code"))


class SelfTest:
    """All checks against one service."""

    def __init__(self, source: Source, url: str) -> None:
        """`source`: its keys. `url`: without a path."""
        self._source, self._url = source, url.rstrip("/")

    def run(self) -> list[Check]:
        """Raises ValueError, OSError: the service cannot be reached or its keys not be changed."""
        with self._key() as key:
            self._model = self._only_model(key.secret)
        checks = (self._rate, self._wait, self._budget, self._scope, self._revoked)
        return [check for part in checks for check in part()]

    def _rate(self) -> Iterator[Check]:
        with self._key(rpm=3) as key:
            replies = self._together(key.secret, 8)
        statuses = sorted(reply.status for reply in replies)
        yield _equal("8 at once, 3 a minute allowed", [200] * 3 + [429] * 5, statuses)
        refused = [reply for reply in replies if reply.status == 429]
        codes = sorted({reply.code for reply in refused})
        yield _equal("what the refused are told", ["rate_limit_exceeded"], codes)
        waits = [_retry_after_s(reply) for reply in refused]
        longest, shortest = max(waits, default=0.0), min(waits, default=0.0)
        found = f"{shortest:.1f} to {longest:.1f} s"
        yield Check("their Retry-After", "0 to 20 s", found, 0 < shortest <= longest <= 20)

    def _wait(self) -> Iterator[Check]:
        with self._key(rpm=20, burst_s=3) as key:
            first = self._together(key.secret, 2)
            refused = [reply for reply in first if reply.status == 429]
            wait_s = max(map(_retry_after_s, refused), default=0.0)
            time.sleep(min(wait_s, TIMEOUT_S))
            again = self._ask(key.secret).status
        statuses = sorted(reply.status for reply in first)
        yield _equal("2 at once, 1 in 3 s allowed", [200, 429], statuses)
        yield _equal("again after exactly Retry-After", 200, again)

    def _budget(self) -> Iterator[Check]:
        with self._key(tokens_per_day=1) as key:
            reply = self._ask(key.secret)
        found = f"{reply.status} {reply.code}"
        yield _equal("a budget of 1 token a day", "429 insufficient_quota", found)
        retried = reply.headers.get("x-should-retry", "-")
        yield _equal("its x-should-retry", "false", retried)

    def _scope(self) -> Iterator[Check]:
        with self._key(scopes=("usage",)) as key:
            yield _equal("a key without the inference scope", 403, self._ask(key.secret).status)

    def _revoked(self) -> Iterator[Check]:
        with self._key() as key:
            before = self._ask(key.secret).status
            self._source.change(lambda keys: keys.revoke(key.key.id))
            after = self._ask(key.secret).status
        yield _equal("a key before and after it is revoked", [200, 401], [before, after])

    @contextmanager
    def _key(self, **settings: Any) -> Iterator[CreatedKey]:
        settings |= {"label": "limits self-test", "expires_at": int(time.time()) + KEYS_LIVE_S}
        shape = partial(set_key, settings=settings)
        created = self._source.change(lambda keys: keys.create(TENANT, shape=shape), peppered=True)
        try:
            yield created
        finally:
            self._source.change(lambda keys: keys.forget(created.key.id))

    def _together(self, secret: str, count: int) -> list[Reply]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self._ask(secret), range(count)))

    def _ask(self, secret: str) -> Reply:
        """A chat of one token."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 1,
        }
        return self._send("/v1/chat/completions", secret, json.dumps(body).encode())

    def _only_model(self, secret: str) -> str:
        reply = self._send("/v1/models", secret)
        if reply.status != 200:
            raise ValueError(
                f"{self._url} does not know a key that was just made ({reply.status}): give the "
                "--config or --state-dir of the service that answers there, or its --url"
            )
        return str(json.loads(reply.body)["data"][0]["id"])

    def _send(self, path: str, secret: str, body: bytes | None = None) -> Reply:
        headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
        request = urllib.request.Request(self._url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                return Reply(reply.status, _lower(reply.headers), reply.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, _lower(error.headers), error.read())
        except urllib.error.URLError as error:
            raise OSError(f"{self._url} does not answer: {error.reason}; give --url") from None


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _retry_after_s(reply: Reply) -> float:
    return float(reply.headers.get("retry-after-ms", 0)) / 1000


def _equal(what: str, expected: Any, found: Any) -> Check:
    return Check(what, _words(expected), _words(found), expected == found)


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
