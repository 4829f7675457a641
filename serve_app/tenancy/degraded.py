"""LocalAdmission: what one ingress may let in by itself while Redis is away.

Owns the arithmetic of shares. N ingresses that do not hear of each other each take 0.8 / N of every
limit and of the capacity that was free when Redis last spoke, on top of what they run already; so
together they stay below what there is, and replicas that go unnoticed have a fifth to fall into.
Nobody waits: what does not fit is refused, to come back soon. Refuses to know Redis and files.

    rate of key, tenant     a bucket of 0.8 / N of the limit, filled as far as the limit was when
                            the key was last seen
    concurrency             0.8 / N of the limit, what runs here counted
    KV tokens, slots        what this ingress held + 0.8 / N of what was free; once its lease is
                            over, and Redis may have given that away, at most 0.8 / N of all
    budgets                 not known here; charged when Redis is told
"""

import math
import random
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from serve_app.tenancy.limiter import Limits
from serve_app.tenancy.refusals import (
    Figure,
    Figures,
    NoReplica,
    Overloaded,
    RateLimited,
    StoreUnavailable,
)

KEEP = 0.8
COME_BACK_S = (1.0, 3.0)
_METERS = {"rpm": "requests", "tpm": "tokens", "itpm": "input_tokens", "otpm": "output_tokens"}
"""Our limits and what the figures call them."""


class Share(msgspec.Struct, frozen=True):
    """What Redis last said of the whole pool, in the order of scripts/share.lua."""

    ingresses: int
    ready: int
    """Replicas."""
    kv_free: int
    slots_free: int
    block: int
    largest: int
    """The most KV tokens that one replica can take."""
    kv_total: int
    slots_total: int


class Held(msgspec.Struct, frozen=True):
    """A request that runs here."""

    key_id: str
    tenant: str
    kv: int


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A request that wants in."""

    key_id: str
    tenant: str
    prompt_tokens: int
    max_tokens: int
    figures: Figures
    """The limits as the key was last told them."""

    def cost(self) -> dict[str, int]:
        """By limit."""
        tokens = self.prompt_tokens + self.max_tokens
        return {"rpm": 1, "tpm": tokens, "itpm": self.prompt_tokens, "otpm": self.max_tokens}


class LetIn(NamedTuple):
    """A request that runs without Redis."""

    kv: int
    """KV tokens reserved."""
    figures: Figures
    """Of this ingress's shares, after the reservation."""
    give_back: Callable[[int, int], None]
    """Called in the end with the input and output tokens used."""


class LocalAdmission:
    """One outage, at one ingress."""

    def __init__(
        self,
        share: Share,
        held: Collection[Held],
        *,
        lease_left_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`held`: what ran here when Redis told `share`. `lease_left_s`: how long Redis counts on
        this ingress. `clock`: seconds."""
        self._share, self._clock = share, clock
        self._part = KEEP / max(1, share.ingresses)
        self._kv = sum(one.kv for one in held) + math.floor(share.kv_free * self._part)
        self._slots = len(held) + self._whole(share.slots_free)
        self._lease_ends = clock() + lease_left_s
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def admit(self, wish: Wish, key: Limits, tenant: Limits, running: Collection[Held]) -> LetIn:
        """Lets a request in.

        Raises:
            RateLimited, Overloaded, NoReplica: not now.
            StoreUnavailable: never in this outage: it is larger than this ingress's share.
        """
        if not self._share.ready:
            raise NoReplica(COME_BACK_S[1])
        self._check_concurrency(wish, key, tenant, running)
        kv = self._need(wish)
        now, cost = self._clock(), wish.cost()
        most_kv, most_slots = self._room(now)
        if sum(one.kv for one in running) + kv > most_kv or len(running) >= most_slots:
            raise Overloaded(random.uniform(*COME_BACK_S))
        buckets = self._buckets_of(wish, key, tenant, now)
        for scope, name, bucket in buckets:
            wait_s = bucket.wait_s(cost[name], now)
            if math.isinf(wait_s):
                raise StoreUnavailable(f"{name} is above an ingress's share")
            if wait_s > 0:
                raise RateLimited(name, scope, wait_s, _figures(buckets))
        for _, name, bucket in buckets:
            bucket.take(cost[name])

        def give_back(input_used: int, output_used: int) -> None:
            used = {"tpm": input_used + output_used, "itpm": input_used, "otpm": output_used}
            for _, name, bucket in buckets:
                bucket.take(used.get(name, cost[name]) - cost[name])

        return LetIn(kv, _figures(buckets), give_back)

    def _room(self, now: float) -> tuple[int, int]:
        """The most KV tokens and requests that may run here."""
        if now < self._lease_ends:
            return self._kv, self._slots
        share = self._share
        most = math.floor(share.kv_total * self._part)
        return min(self._kv, most), min(self._slots, self._whole(share.slots_total))

    def _need(self, wish: Wish) -> int:
        block, tokens = self._share.block, wish.prompt_tokens + wish.max_tokens
        return min(-(-tokens // block) * block, self._share.largest)

    def _whole(self, limit: int) -> int:
        """This ingress's part of a count: one at least, where there is one for each."""
        return max(math.floor(limit * self._part), int(limit >= self._share.ingresses))

    def _check_concurrency(
        self, wish: Wish, key: Limits, tenant: Limits, running: Collection[Held]
    ) -> None:
        held = {
            "key": (key.concurrency, sum(one.key_id == wish.key_id for one in running)),
            "tenant": (tenant.concurrency, sum(one.tenant == wish.tenant for one in running)),
        }
        for scope, (limit, count) in held.items():
            if limit and count >= self._whole(limit):
                raise RateLimited("concurrency", scope, COME_BACK_S[0], Figures())

    def _buckets_of(
        self, wish: Wish, key: Limits, tenant: Limits, now: float
    ) -> list[tuple[str, str, "_Bucket"]]:
        found = []
        scopes = (("key", wish.key_id, key), ("tenant", wish.tenant, tenant))
        for scope, owner, limits in scopes:
            for name, told in _METERS.items():
                limit: int = getattr(limits, name)
                if limit:
                    at = (f"{scope}:{owner}", name)
                    if at not in self._buckets:
                        left = _share_left(getattr(wish.figures, told), limits.burst_s)
                        self._buckets[at] = self._bucket(name, limit, limits.burst_s, left, now)
                    found.append((scope, name, self._buckets[at]))
        return found

    def _bucket(self, name: str, limit: int, burst_s: int, left: float, now: float) -> "_Bucket":
        most = limit * burst_s / 60
        own = self._whole(math.floor(most)) if name == "rpm" else most * self._part
        return _Bucket(limit * self._part / 60, own, own * left, now)


class _Bucket:
    """Tokens that flow in at `rate` a second up to `most`."""

    def __init__(self, rate: float, most: float, level: float, now: float) -> None:
        self._rate, self._most, self._level, self._at = rate, most, level, now

    def wait_s(self, cost: int, now: float) -> float:
        """Seconds until `cost` is there; infinite when it never will be."""
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now
        if cost > self._most:
            return math.inf
        return max(0.0, (cost - self._level) / self._rate)

    def figure(self) -> Figure:
        """As of the last look."""
        reset_s = (self._most - self._level) / self._rate
        return Figure(max(1, math.floor(self._rate * 60)), max(0, math.floor(self._level)), reset_s)

    def take(self, cost: int) -> None:
        """Less than nothing is a refund."""
        self._level = min(self._most, self._level - cost)


def _figures(buckets: list[tuple[str, str, _Bucket]]) -> Figures:
    """The tighter of key and tenant for each meter, as scripts/meter.lua chooses it."""
    found: dict[str, Figure] = {}
    for _, name, bucket in buckets:
        told, figure = _METERS[name], bucket.figure()
        if told not in found or figure.remaining < found[told].remaining:
            found[told] = figure
    return Figures(**found)


def _share_left(figure: Figure | None, burst_s: int) -> float:
    """How full a meter was, from 0 to 1."""
    if figure is None:
        return 1.0
    return min(1.0, figure.remaining / max(1, figure.limit * burst_s // 60))
