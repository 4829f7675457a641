"""Ticket: the right to run one request, as whoever runs it holds it.

Owns that it is settled once, and the news that reach a run from outside: that its lease was taken
back, that its owner stopped it. Refuses to know how it was granted.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from serve_app.tenancy.refusals import Figures
from serve_app.tenancy.session import Lease, News, StopReason


class Ends(Protocol):
    """Whom the end of a request is told."""

    def end(self, rid: str, script: str, *args: str | int) -> asyncio.Future[None]:
        """See `Session.end`."""


class Ticket:
    """A lease: the right to run one request. Settle it, always."""

    def __init__(
        self, session: Ends, lease: Lease, news: News, figures: Figures, queued_s: float
    ) -> None:
        self._session, self._lease = session, lease
        self._settled: asyncio.Future[None] | None = None
        self.rid, self.key_id, self.tenant = lease.rid, lease.key_id, lease.tenant
        self.service_class = lease.service_class
        """The class it runs in, at most as high as its key allows."""
        self.fence = news.fence
        """Grows with every grant of the pool."""
        self.replica = news.replica or None
        """The replica with most room: a hint."""
        self.kv_need = lease.kv
        """KV tokens reserved for it."""
        self.queued_s = queued_s
        self.figures = figures

    @property
    def ended(self) -> asyncio.Event:
        """Set when Redis took the lease back because it ran past its longest time."""
        return self._lease.ended

    def when_stopped(self, call: Callable[[StopReason], None]) -> None:
        """Calls `call`, at once or later, when the request shall end before its time."""
        self._lease.when_stopped(call)

    def when_asked(self, output_so_far: Callable[[], int]) -> None:
        """Who tells the output tokens so far: charged when this process dies before it settles."""
        self._lease.output_so_far = output_so_far

    def rate_limit_headers(self) -> dict[str, str]:
        """`x-ratelimit-*` as they stand after this request's reservation."""
        return self.figures.headers()

    def settle(
        self,
        *,
        prompt_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
        outcome: str = "ok",
    ) -> asyncio.Future[None]:
        """Charges what was used, refunds the rest, frees the slot; outcome: ok, abort or error.

        Returns at once; the work runs by itself and outlives the caller. The result may be awaited
        (done when Redis has heard it), cancelled or dropped. Only the first call counts.
        """
        if outcome not in ("ok", "abort", "error"):
            raise ValueError("outcome is ok, abort or error")
        if self._settled is None:
            counts = (prompt_tokens, cached_tokens, output_tokens, reasoning_tokens)
            self._settled = self._session.end(self.rid, "settle", self.rid, outcome, *counts)
        return self._settled
