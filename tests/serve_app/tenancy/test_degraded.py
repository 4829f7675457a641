"""The shares of ingresses that do not hear of each other: together below what there is."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from serve_app.tenancy.degraded import Held, LocalAdmission, Share, Wish
from serve_app.tenancy.limiter import Limits
from serve_app.tenancy.refusals import (
    Figure,
    Figures,
    NoReplica,
    Overloaded,
    RateLimited,
    Refusal,
    StoreUnavailable,
)

FREE = Limits()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def share(ingresses: int = 2, *, kv: int = 1000, slots: int = 100, ready: int = 1) -> Share:
    return Share(ingresses, ready, kv, slots, 10, 920, 4 * kv, 4 * slots)


def alone(
    told: Share | None = None,
    held: list[Held] | None = None,
    *,
    clock: Callable[[], float] | None = None,
    lease_left_s: float = 1e9,
) -> LocalAdmission:
    return LocalAdmission(
        told or share(), held or [], lease_left_s=lease_left_s, clock=clock or Clock()
    )


def wish(prompt: int = 10, most: int = 10, figures: Figures | None = None) -> Wish:
    return Wish(
        key_id="k",
        tenant="acme",
        prompt_tokens=prompt,
        max_tokens=most,
        figures=figures or Figures(),
    )


def let_in(local: LocalAdmission, running: list[Held], limits: Limits, one: Wish) -> bool:
    try:
        kv = local.admit(one, limits, FREE, running).kv
    except Refusal:
        return False
    running.append(Held("k", "acme", kv))
    return True


@given(
    ingresses=st.integers(1, 5),
    free=st.integers(0, 3000),
    slots=st.integers(0, 40),
    held=st.lists(st.integers(1, 300), max_size=4),
    wishes=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 400)), max_size=60),
)
def test_all_ingresses_together_never_promise_more_than_was_free(
    ingresses: int, free: int, slots: int, held: list[int], wishes: list[tuple[int, int]]
) -> None:
    told = share(ingresses, kv=free, slots=slots)
    running = [[Held("k", "acme", kv) for kv in held] for _ in range(ingresses)]
    locals_ = [alone(told, list(one)) for one in running]
    for who, tokens in wishes:
        at = who % ingresses
        let_in(locals_[at], running[at], FREE, wish(0, tokens))
    new = [one for those in running for one in those[len(held) :]]
    assert sum(one.kv for one in new) <= free
    assert len(new) <= slots


@given(
    ingresses=st.integers(1, 5),
    total=st.integers(0, 3000),
    held=st.lists(st.integers(1, 300), max_size=4),
    wishes=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 400)), max_size=60),
)
def test_once_leases_are_over_all_ingresses_together_start_nothing_beyond_the_whole(
    ingresses: int, total: int, held: list[int], wishes: list[tuple[int, int]]
) -> None:
    told = Share(ingresses, 1, total, 1000, 10, 920, total, 1000)
    before = [Held("k", "acme", kv) for kv in held]
    locals_ = [alone(told, before, lease_left_s=0.0) for _ in range(ingresses)]
    running: list[list[Held]] = [[] for _ in range(ingresses)]  # what ran has ended
    for who, tokens in wishes:
        let_in(locals_[who % ingresses], running[who % ingresses], FREE, wish(0, tokens))
    assert sum(one.kv for those in running for one in those) <= 0.8 * total


@given(
    ingresses=st.integers(1, 5),
    rpm=st.integers(1, 100),
    minutes=st.integers(1, 5),
)
def test_the_parts_of_a_rate_never_add_up_to_more_than_the_rate(
    ingresses: int, rpm: int, minutes: int
) -> None:
    clock, limits, count = Clock(), Limits(rpm=rpm), 0
    big = share(ingresses, kv=10**9, slots=10**6)
    doors = [alone(big, clock=clock) for _ in range(ingresses)]
    for tick in range(minutes * 60 + 1):
        clock.now = float(tick)
        for local in doors:
            while let_in(local, [], limits, wish(1, 1)):
                count += 1
    assert count <= rpm + rpm * minutes  # the burst, and what the rate allows in the time


def test_the_wait_that_a_refusal_names_is_enough() -> None:
    clock = Clock()
    local = alone(clock=clock)
    limits = Limits(rpm=30)
    for _ in range(12):  # 0.8 / 2 of thirty
        local.admit(wish(), limits, FREE, [])
    with pytest.raises(RateLimited) as refused:
        local.admit(wish(), limits, FREE, [])
    assert refused.value.retry_after_s == pytest.approx(5.0)
    clock.now += 5.0001
    local.admit(wish(), limits, FREE, [])


def test_a_key_that_had_used_its_limit_up_starts_with_nothing() -> None:
    used_up = Figures(requests=Figure(limit=30, remaining=0, reset_s=60.0))
    with pytest.raises(RateLimited):
        alone().admit(wish(figures=used_up), Limits(rpm=30), FREE, [])


def test_what_a_request_did_not_use_is_given_back() -> None:
    local = alone()
    limits = Limits(tpm=1000)  # 400 of it here
    give_back = local.admit(wish(100, 300), limits, FREE, []).give_back
    with pytest.raises(RateLimited):
        local.admit(wish(100, 200), limits, FREE, [])
    give_back(100, 0)
    local.admit(wish(100, 200), limits, FREE, [])


def test_a_tenants_limits_hold_over_its_keys() -> None:
    local, tenant = alone(share(1)), Limits(concurrency=5)
    running = [Held(f"k{number}", "acme", 10) for number in range(4)]
    with pytest.raises(RateLimited) as refused:
        local.admit(wish(), FREE, tenant, running)
    assert (refused.value.limit, refused.value.scope) == ("concurrency", "tenant")


@pytest.mark.parametrize(
    ("ask", "refusal"),
    [
        (lambda: alone(share(ready=0)).admit(wish(), FREE, FREE, []), NoReplica),
        (lambda: alone(share(kv=0)).admit(wish(), FREE, FREE, []), Overloaded),
        (lambda: alone(share(slots=0)).admit(wish(), FREE, FREE, []), Overloaded),
        (
            lambda: alone().admit(wish(), Limits(tpm=40), FREE, []),
            StoreUnavailable,
        ),
    ],
    ids=["no replica", "no room", "no slot", "larger than the share"],
)
def test_each_reason_has_its_refusal(ask: Callable[[], object], refusal: type[Refusal]) -> None:
    with pytest.raises(refusal) as refused:
        ask()
    assert float(refused.value.headers()["retry-after"]) >= 1


def test_figures_are_those_of_the_share_the_tighter_of_key_and_tenant() -> None:
    local = alone()  # 0.8 / 2 of each limit
    figures = local.admit(wish(10, 30), Limits(rpm=10, tpm=1000), Limits(tpm=500), []).figures
    assert figures.requests is not None
    assert figures.tokens is not None
    assert (figures.requests.limit, figures.requests.remaining) == (4, 3)
    assert (figures.tokens.limit, figures.tokens.remaining) == (200, 160)
    assert figures.requests.reset_s == pytest.approx(15)
    assert figures.tokens.reset_s == pytest.approx(12)
    assert figures.input_tokens is None
    for _ in range(3):
        local.admit(wish(), Limits(rpm=10), FREE, [])
    with pytest.raises(RateLimited) as refused:
        local.admit(wish(), Limits(rpm=10), FREE, [])
    assert refused.value.headers()["x-ratelimit-remaining-requests"] == "0"
