import asyncio
import time
from collections import Counter
from typing import Any

import msgspec
import pytest

from serve_app.tenancy.admission import AdmissionQueue, AdmitRequest
from serve_app.tenancy.admit_reply import QueuePlace
from serve_app.tenancy.capacity import pool_totals
from serve_app.tenancy.keys import CreatedKey
from serve_app.tenancy.refusals import (
    CostAboveBurst,
    NoReplica,
    Overloaded,
    RateLimited,
    Refusal,
    Unauthorized,
)
from serve_app.tenancy.ticket import Ticket
from tests.serve_app.tenancy.world import World, attempt, until

pytestmark = pytest.mark.anyio


async def settle(ticket: Ticket, output: int = 5) -> None:
    await ticket.settle(prompt_tokens=10, output_tokens=output)


async def test_key_of_five_a_minute_gets_exactly_five_of_fifty_parallel(world: World) -> None:
    key, _ = await world.key(rpm=5), await world.replica()
    queues = [await world.ingress() for _ in range(2)]

    async def one(queue: AdmissionQueue) -> Refusal | None:
        outcome = await attempt(queue, world.request(key))
        if isinstance(outcome, Refusal):
            return outcome
        await settle(outcome)
        return None

    outcomes = await asyncio.gather(*(one(queues[i % 2]) for i in range(50)))
    refusals = [outcome for outcome in outcomes if outcome is not None]
    assert len(refusals) == 45
    for refusal in refusals:
        assert isinstance(refusal, RateLimited)
        assert refusal.limit == "rpm"
        assert 1 <= int(refusal.headers()["retry-after"]) <= 12
        assert refusal.headers()["x-ratelimit-remaining-requests"] == "0"


async def test_500_parallel_on_a_limit_of_100_are_exactly_100(world: World) -> None:
    key, _ = await world.key(concurrency=100), await world.replica()
    queues = [await world.ingress() for _ in range(3)]
    outcomes = await asyncio.gather(
        *(attempt(queues[i % 3], world.request(key)) for i in range(500))
    )
    kinds = Counter(type(outcome) for outcome in outcomes)
    assert kinds == {Ticket: 100, RateLimited: 400}
    refused = next(outcome for outcome in outcomes if isinstance(outcome, RateLimited))
    assert refused.limit == "concurrency"
    assert int(refused.headers()["retry-after"]) >= 1


async def test_waiting_exactly_retry_after_is_enough(world: World) -> None:
    key, _ = await world.key(rpm=600, burst_s=1), await world.replica()
    queue = await world.ingress()
    refused: Refusal | None = None
    while refused is None:
        outcome = await attempt(queue, world.request(key))
        refused = outcome if isinstance(outcome, Refusal) else None
    assert refused.retry_after_s is not None
    assert refused.retry_after_s <= 0.1
    await asyncio.sleep(refused.retry_after_s)
    assert isinstance(await attempt(queue, world.request(key)), Ticket)


async def test_tokens_are_reserved_at_admission_and_refunded_at_settlement(world: World) -> None:
    key, _ = await world.key(tpm=1000), await world.replica()
    queue = await world.ingress()
    ticket = await queue.admit(world.request(key, prompt=100, most=800))
    assert ticket.rate_limit_headers()["x-ratelimit-limit-tokens"] == "1000"
    assert ticket.rate_limit_headers()["x-ratelimit-remaining-tokens"] == "100"
    with pytest.raises(RateLimited) as refused:
        await queue.admit(world.request(key, prompt=100, most=100))
    assert refused.value.limit == "tpm"
    await ticket.settle(prompt_tokens=100, output_tokens=10)
    again = await queue.admit(world.request(key, prompt=100, most=700))
    assert again.figures.tokens is not None
    assert 90 <= again.figures.tokens.remaining <= 100


async def test_cost_above_the_burst_is_an_error_for_good(world: World) -> None:
    key, _ = await world.key(tpm=100), await world.replica()
    queue = await world.ingress()
    with pytest.raises(CostAboveBurst) as refused:
        await queue.admit(world.request(key, prompt=50, most=100))
    assert (refused.value.limit, refused.value.cost, refused.value.most) == ("tpm", 150, 100)
    assert "tpm" in str(refused.value)
    assert "retry-after" not in refused.value.headers()


async def test_tenant_limit_holds_over_all_its_keys(world: World) -> None:
    keys, _ = [await world.key("acme") for _ in range(3)], await world.replica()
    world.keys.set_tenant("acme", world.keys.read().keys[0].limits.__class__(rpm=4))
    await world.publish()
    queue = await world.ingress()
    outcomes = [await attempt(queue, world.request(keys[i % 3])) for i in range(9)]
    assert sum(isinstance(outcome, Ticket) for outcome in outcomes) == 4
    last = outcomes[-1]
    assert isinstance(last, RateLimited)
    assert last.scope == "tenant"


async def test_estimate_follows_what_a_key_really_produces(world: World) -> None:
    key, _ = await world.key(tpm=100_000), await world.replica()
    queue = await world.ingress()
    for _ in range(12):
        ticket = await queue.admit(world.request(key, most=1000))
        await settle(ticket, output=20)
    assert 10 + 20 <= ticket.kv_need <= 10 + 30


async def test_revoked_key_is_refused_on_the_next_request(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    await queue.admit(world.request(key))
    assert (await queue.identify(key.secret)).key_id == key.key.id
    world.keys.revoke(key.key.id)
    await world.publish()
    with pytest.raises(Unauthorized) as refused:
        await queue.admit(world.request(key))
    assert refused.value.reason == "revoked"
    with pytest.raises(Unauthorized):
        await queue.identify(key.secret, fresh=True)


async def test_change_of_the_key_file_is_noticed_and_a_broken_one_survived(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    later = world.keys.create("acme")  # nobody tells Redis
    await until(lambda: _is_known(queue, later.secret))
    world.keys.path.write_text("{broken")
    await asyncio.sleep(0.3)
    assert isinstance(await attempt(queue, world.request(key)), Ticket)


async def test_unknown_and_expired_keys_are_refused_alike(world: World) -> None:
    unknown = world.keys.create("acme")
    expired = await world.key(expires_at=int(time.time()) - 1)
    other = AdmitRequest(rid="x", digest="0" * 64, prompt_tokens=1, max_tokens=1)
    await world.replica()
    queue = await world.ingress()
    messages = set()
    for request in (other, world.request(expired)):
        with pytest.raises(Unauthorized) as refused:
            await queue.admit(request)
        messages.add(str(refused.value))
        assert refused.value.code == "invalid_api_key"
    assert len(messages) == 1
    assert isinstance(await attempt(queue, world.request(unknown)), Ticket)  # loaded at start


async def test_committed_tokens_never_exceed_what_replicas_have(world: World) -> None:
    key, _ = await world.key(), await world.replica(kv=100)
    queues = [await world.ingress() for _ in range(2)]
    peak = 0

    async def one(queue: AdmissionQueue) -> None:
        nonlocal peak
        ticket = await queue.admit(world.request(key, prompt=10, most=10))
        peak = max(peak, (await pool_totals(world.store)).committed)
        await settle(ticket, output=10)

    await asyncio.gather(*(one(queues[i % 2]) for i in range(40)))
    assert 60 <= peak <= 92  # 8 % stay free
    totals = await pool_totals(world.store)
    assert (totals.running, totals.waiting, totals.committed, totals.waiting_need) == (0, 0, 0, 0)
    assert (totals.admitted, totals.settled) == (40, 40)


async def test_used_blocks_hold_admission_back_whatever_was_promised(world: World) -> None:
    key, _ = await world.key(), await world.replica(kv=100, free=20)
    queue = await world.ingress(queue_timeout_s=0.2)
    assert isinstance(await attempt(queue, world.request(key, prompt=5, most=5)), Ticket)
    assert isinstance(await attempt(queue, world.request(key, prompt=5, most=5)), Overloaded)


async def test_request_larger_than_any_replica_gets_an_empty_one(world: World) -> None:
    key, _ = await world.key(), await world.replica(kv=100)
    queue = await world.ingress()
    ticket = await queue.admit(world.request(key, prompt=10, most=1000))
    assert ticket.kv_need == 92


async def test_waiters_of_a_tenant_are_served_in_order(world: World) -> None:
    key, _ = await world.key(), await world.replica(slots=1)
    queue = await world.ingress()
    running = await queue.admit(world.request(key))
    order: list[int] = []
    places: list[QueuePlace] = []

    async def wait(number: int) -> None:
        ticket = await queue.admit(world.request(key), places.append)
        order.append(number)
        assert ticket.queued_s > 0
        await settle(ticket)

    waiters = []
    for number in range(5):
        waiters.append(asyncio.create_task(wait(number)))
        await until(lambda wanted=number + 1: len(places) == wanted)  # type: ignore[misc]
    assert [place.position for place in places] == [1, 2, 3, 4, 5]
    await settle(running)
    await asyncio.gather(*waiters)
    assert order == [0, 1, 2, 3, 4]


async def test_a_flood_of_one_tenant_does_not_delay_another(world: World) -> None:
    flood, polite = await world.key("flood"), await world.key("polite")
    await world.replica(slots=1)
    queue = await world.ingress()
    running = await queue.admit(world.request(flood))
    order: list[str] = []

    async def wait(request: AdmitRequest, name: str) -> None:
        ticket = await queue.admit(request)
        order.append(name)
        await settle(ticket)

    waiters = [asyncio.create_task(wait(world.request(flood), "flood")) for _ in range(30)]
    await until(lambda: _waiting(world, 30))
    waiters += [asyncio.create_task(wait(world.request(polite), "polite")) for _ in range(3)]
    await until(lambda: _waiting(world, 33))
    await settle(running)
    await asyncio.gather(*waiters)
    assert [i for i, name in enumerate(order) if name == "polite"][-1] <= 6


async def test_weight_divides_service_among_tenants(world: World) -> None:
    heavy, light = await world.key("heavy"), await world.key("light")
    world.keys.set_tenant("heavy", heavy.key.limits, weight=3)
    await world.publish()
    await world.replica(slots=1)
    queue = await world.ingress()
    running = await queue.admit(world.request(light))
    order: list[str] = []

    async def wait(request: AdmitRequest, name: str) -> None:
        ticket = await queue.admit(request)
        order.append(name)
        await ticket.settle(prompt_tokens=10, output_tokens=10)

    pairs = [(world.request(key), key.key.tenant) for key in [heavy, light] * 16]
    waiters = [asyncio.create_task(wait(*pair)) for pair in pairs]
    await until(lambda: _waiting(world, 32))
    await running.settle(prompt_tokens=10, output_tokens=10)
    await asyncio.gather(*waiters)
    assert 11 <= order[:16].count("heavy") <= 13


async def test_full_queue_is_told_to_come_back_later(world: World) -> None:
    key, _ = await world.key(), await world.replica(slots=1)
    queue = await world.ingress(max_queued=3)
    running = await queue.admit(world.request(key))
    waiters = [asyncio.create_task(attempt(queue, world.request(key))) for _ in range(3)]
    await until(lambda: _waiting(world, 3))
    refused = await attempt(queue, world.request(key))
    assert isinstance(refused, Overloaded)
    assert refused.code == "overloaded"
    assert int(refused.headers()["retry-after"]) >= 1
    await settle(running)
    for waiter in waiters:
        ticket = await waiter
        assert isinstance(ticket, Ticket)
        await settle(ticket)


async def test_deadline_ends_the_wait(world: World) -> None:
    key, _ = await world.key(tpm=1000), await world.replica(slots=1)
    queue = await world.ingress()
    running = await queue.admit(world.request(key))
    with pytest.raises(Overloaded):
        await queue.admit(world.request(key, deadline_s=0.1))
    totals = await pool_totals(world.store)
    assert (totals.waiting, totals.running, totals.cancelled) == (0, 1, 1)
    await settle(running, output=10)
    after = await queue.identify(key.secret, fresh=True)
    assert after.figures.tokens is not None
    assert after.figures.tokens.remaining >= 980  # the waiter's reservation was given back


async def test_predicted_wait_beyond_the_deadline_is_refused_at_once(world: World) -> None:
    key, _ = await world.key(), await world.replica(slots=1)
    queue = await world.ingress()
    ticket = await queue.admit(world.request(key))
    await asyncio.sleep(0.3)
    await settle(ticket)  # so it is known that a request takes 0.3 s
    running = await queue.admit(world.request(key))
    waiter = asyncio.create_task(queue.admit(world.request(key)))
    await until(lambda: _waiting(world, 1))
    seen: list[QueuePlace] = []
    with pytest.raises(Overloaded):
        await queue.admit(world.request(key, deadline_s=0.4), seen.append)
    assert not seen  # never queued
    await settle(running)
    await settle(await waiter)


async def test_cancelled_waiter_leaves_the_queue_and_gives_its_tokens_back(world: World) -> None:
    key, _ = await world.key(tpm=1000), await world.replica(slots=1)
    queue = await world.ingress()
    running = await queue.admit(world.request(key, most=90))
    waiter = asyncio.create_task(queue.admit(world.request(key, most=400)))
    await until(lambda: _waiting(world, 1))
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await until(lambda: _waiting(world, 0))
    figures = (await queue.identify(key.secret, fresh=True)).figures
    assert figures.tokens is not None
    assert figures.tokens.remaining >= 900
    await running.settle(prompt_tokens=10, output_tokens=90)


async def test_cancelling_at_any_moment_leaks_nothing(world: World) -> None:
    key, _ = await world.key(concurrency=1000), await world.replica(slots=20)
    queues = [await world.ingress() for _ in range(2)]

    async def fickle(number: int) -> None:
        request = world.request(key)
        task = asyncio.create_task(queues[number % 2].admit(request))
        await asyncio.sleep(number % 50 * 0.0007)
        task.cancel()
        try:
            ticket = await task
        except asyncio.CancelledError:
            return
        settled = ticket.settle(prompt_tokens=10, output_tokens=1, outcome="abort")
        settled.cancel()  # whoever settles may be cancelled as well

    await asyncio.gather(*(fickle(number) for number in range(300)))

    async def idle() -> bool:
        totals = await pool_totals(world.store)
        return totals.running == totals.waiting == totals.committed == 0

    await until(idle)
    assert not (await world.spent("k", key.key.id))["n"]


async def test_settlement_counts_once(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    ticket = await queue.admit(world.request(key))
    await asyncio.gather(*(settle(ticket) for _ in range(5)))
    totals = await pool_totals(world.store)
    assert (totals.settled, totals.running) == (1, 0)
    assert await world.raw("XLEN", "led") == 1


async def test_without_replica_the_wait_is_short_and_ends_in_no_replica(world: World) -> None:
    key = await world.key()
    at_once, patient = await world.ingress(cold_start_s=0), await world.ingress(cold_start_s=0.1)
    for queue in (at_once, patient):
        with pytest.raises(NoReplica) as refused:
            await queue.admit(world.request(key))
        assert int(refused.value.headers()["retry-after"]) >= 1


async def test_waiters_start_when_the_first_replica_reports(world: World) -> None:
    key = await world.key()
    queue = await world.ingress()
    waiters = [asyncio.create_task(queue.admit(world.request(key))) for _ in range(3)]
    await until(lambda: _waiting(world, 3))
    await world.replica()
    for ticket in await asyncio.gather(*waiters):
        assert ticket.replica == "r1"


async def test_place_tells_where_a_waiter_stands(world: World) -> None:
    key, _ = await world.key(), await world.replica(slots=1)
    queue = await world.ingress()
    running = await queue.admit(world.request(key))
    requests = [world.request(key) for _ in range(3)]
    waiters = []
    for number, request in enumerate(requests):
        waiters.append(asyncio.create_task(attempt(queue, request)))
        await until(lambda wanted=number + 1: _waiting(world, wanted))  # type: ignore[misc]
    places = [await queue.place(request.rid) for request in requests]
    assert [place and place.position for place in places] == [1, 2, 3]
    assert await queue.place(running.rid) is None
    for waiter in waiters:
        waiter.cancel()


async def test_request_id_in_use_is_an_error(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress()
    request = world.request(key)
    await queue.admit(request)
    with pytest.raises(ValueError, match="in use"):
        await queue.admit(request)


async def test_longest_run_ends_a_request_nobody_settles(world: World) -> None:
    key, _ = await world.key(), await world.replica()
    queue = await world.ingress(longest_run_s=0.1)
    ticket = await queue.admit(world.request(key))
    await ticket.ended.wait()
    assert (await pool_totals(world.store)).running == 0
    await settle(ticket)  # too late, harmless


async def _is_known(queue: AdmissionQueue, secret: str) -> bool:
    try:
        return bool(await queue.identify(secret, fresh=True))
    except Unauthorized:
        return False


async def _waiting(world: World, count: int) -> bool:
    return (await pool_totals(world.store)).waiting == count


async def test_retries_that_nobody_asked_for_take_a_tenth_of_the_queue(world: World) -> None:
    """Beyond the first ten; what else their key asks for is let in, and so is another key."""
    await world.replica(slots=1)
    queue, key, other = await world.ingress(), await world.key(), await world.key()
    await queue.admit(world.request(key))
    waiting: list[asyncio.Task[Ticket | Refusal]] = []

    async def sent(by: CreatedKey, **told: Any) -> None:
        request = msgspec.structs.replace(world.request(by), **told)
        waiting.append(asyncio.create_task(attempt(queue, request)))
        await until_it_waits_or_ends(world, waiting)

    for _ in range(12):
        await sent(key, retries=1)
    refused = [task.result() for task in waiting if task.done()]
    assert len(refused) == 2
    assert all(isinstance(refusal, Overloaded) for refusal in refused)
    for _ in range(10):
        await sent(key, retries=0)
    await sent(key, retries=2)
    await sent(key, retries=2)
    await sent(other, retries=1)
    assert sum(task.done() for task in waiting) == 3
    for task in waiting:
        task.cancel()


async def until_it_waits_or_ends(world: World, sent: list[asyncio.Task[Ticket | Refusal]]) -> None:
    async def heard_of() -> bool:
        waiting = (await pool_totals(world.store)).waiting
        return waiting + sum(task.done() for task in sent) == len(sent)

    await until(heard_of)
