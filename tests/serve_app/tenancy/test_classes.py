"""Which class a request runs in, and whose turn it is, through real ingresses."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from serve_app.sections import ClassesSection, ClassSection
from serve_app.tenancy.admission import AdmissionQueue, AdmitRequest
from serve_app.tenancy.admit_reply import QueuePlace
from serve_app.tenancy.capacity import pool_totals
from serve_app.tenancy.keys import CLASSES, CreatedKey
from serve_app.tenancy.refusals import Overloaded
from tests.serve_app.tenancy.world import World, attempt, until

pytestmark = pytest.mark.anyio
PLAIN = ClassesSection(
    system=ClassSection(promotion_s=60),
    interactive=ClassSection(promotion_s=60),
    default=ClassSection(promotion_s=60),
    batch=ClassSection(promotion_s=60),
)
"""Rank and nothing else."""


def test_every_class_has_its_settings_and_the_order_is_one() -> None:
    assert tuple(ClassesSection.model_fields) == CLASSES


class Line:
    """Requests that wait behind one that runs; the order in which they start."""

    def __init__(self, world: World, queue: AdmissionQueue) -> None:
        self._world, self._queue = world, queue
        self._waiters: list[asyncio.Task[None]] = []
        self.started: list[str] = []

    async def join(self, key: CreatedKey, service_class: str) -> None:
        request = self._world.request(key, service_class=service_class)
        self._waiters.append(asyncio.create_task(self._wait(request)))
        await until(self._all_wait)

    async def served(self) -> list[str]:
        await asyncio.gather(*self._waiters)
        return self.started

    async def _wait(self, request: AdmitRequest) -> None:
        ticket = await self._queue.admit(request)
        self.started.append(ticket.service_class)
        await ticket.settle(prompt_tokens=10, output_tokens=10)

    async def _all_wait(self) -> bool:
        return (await pool_totals(self._world.store)).waiting == len(self._waiters)


async def class_of(world: World, queue: AdmissionQueue, key: CreatedKey, asked: str) -> str:
    ticket = await queue.admit(world.request(key, service_class=asked))
    await ticket.settle(prompt_tokens=1, output_tokens=1)
    return ticket.service_class


async def test_a_request_runs_in_the_class_it_asks_for_but_not_above_its_keys(world: World) -> None:
    usual, chief, low = [await world.key(name) for name in ("usual", "chief", "low")]
    await world.set_ceiling(chief, "system")
    await world.set_ceiling(low, "batch")
    await world.replica()
    queue = await world.ingress()
    wishes = ("", "system", "interactive", "batch")
    assert [await class_of(world, queue, usual, wish) for wish in wishes] == [
        "default",
        "interactive",
        "interactive",
        "batch",
    ]
    assert [await class_of(world, queue, chief, wish) for wish in wishes] == [
        "default",
        "system",
        "interactive",
        "batch",
    ]
    assert {await class_of(world, queue, low, wish) for wish in wishes} == {"batch"}


async def test_higher_classes_leave_the_queue_first(world: World) -> None:
    key, _ = await world.key(), await world.replica(slots=1)
    await world.set_ceiling(key, "system")
    queue = await world.ingress(classes=PLAIN)
    running = await queue.admit(world.request(key))
    line = Line(world, queue)
    for service_class in ("batch", "default", "interactive", "system", "default"):
        await line.join(key, service_class)
    await running.settle(prompt_tokens=10, output_tokens=10)
    assert await line.served() == ["system", "interactive", "default", "default", "batch"]


async def test_place_counts_everybody_of_higher_classes(world: World) -> None:
    key, _ = await world.key(), await world.replica(slots=1)
    queue = await world.ingress(classes=PLAIN)
    await queue.admit(world.request(key))
    places: list[QueuePlace] = []
    waiters = []
    for number, service_class in enumerate(("default", "batch", "interactive", "batch"), 1):
        request = world.request(key, service_class=service_class)
        waiters.append((request, asyncio.create_task(attempt(queue, request))))
        await until(lambda count=number: _waiting(world, count))  # type: ignore[misc]
        place = await queue.place(request.rid)
        assert place is not None
        places.append(place)
    assert [place.position for place in places] == [1, 2, 1, 4]
    for _, waiter in waiters:
        waiter.cancel()


async def test_batch_leaves_a_fifth_of_everything_to_the_others(world: World) -> None:
    key, _ = await world.key(), await world.replica(kv=1000, slots=10)
    queue = await world.ingress()
    batch = [world.request(key, service_class="batch") for _ in range(12)]
    waiters = [asyncio.create_task(queue.admit(request)) for request in batch]
    await until(lambda: _waiting(world, 4))
    totals = await pool_totals(world.store)
    assert (totals.running, totals.waiting) == (8, 4)
    assert (await queue.admit(world.request(key))).queued_s == 0
    assert (await pool_totals(world.store)).running == 9
    for waiter in waiters:
        waiter.cancel()


async def test_batch_gets_its_turn_however_many_others_wait(world: World) -> None:
    soon = ClassSection(promotion_s=0.3, ceiling=0.8)
    key, _ = await world.key(), await world.replica(slots=1)
    queue = await world.ingress(classes=PLAIN.model_copy(update={"batch": soon}))
    running = await queue.admit(world.request(key))
    line = Line(world, queue)
    await line.join(key, "batch")
    await line.join(key, "batch")
    for _ in range(3):
        await line.join(key, "interactive")
    await asyncio.sleep(0.4)
    await running.settle(prompt_tokens=10, output_tokens=10)
    started = await line.served()
    assert started == ["batch", "interactive", "interactive", "interactive", "batch"]


async def test_a_class_below_its_reserved_share_goes_before_higher_ones(world: World) -> None:
    own = ClassSection(promotion_s=60, reserved_share=0.5)
    key, _ = await world.key(), await world.replica(kv=100, slots=2)
    queue = await world.ingress(classes=PLAIN.model_copy(update={"default": own}))
    running = [await queue.admit(world.request(key, service_class="interactive")) for _ in range(2)]
    line = Line(world, queue)
    await line.join(key, "interactive")
    await line.join(key, "default")
    await running[0].settle(prompt_tokens=10, output_tokens=10)
    assert (await line.served())[0] == "default"


async def test_a_class_has_a_longest_wait_of_its_own(world: World) -> None:
    hasty = ClassSection(promotion_s=60, queue_timeout_s=0.1)
    key, _ = await world.key(), await world.replica(slots=1)
    queue = await world.ingress(classes=PLAIN.model_copy(update={"interactive": hasty}))
    await queue.admit(world.request(key))
    patient = asyncio.create_task(queue.admit(world.request(key)))
    with pytest.raises(Overloaded):
        await queue.admit(world.request(key, service_class="interactive"))
    assert not patient.done()
    patient.cancel()


async def test_one_tenant_cannot_fill_the_queue(world: World) -> None:
    flood, polite = await world.key("flood"), await world.key("polite")
    await world.replica(slots=1)
    queue = await world.ingress(max_queued=20)
    await queue.admit(world.request(flood))
    outcomes = [asyncio.create_task(attempt(queue, world.request(flood))) for _ in range(20)]
    await until(lambda: _done(outcomes, 4))
    assert await _waiting(world, 16)
    assert all(isinstance(task.result(), Overloaded) for task in outcomes if task.done())
    waiter = asyncio.create_task(attempt(queue, world.request(polite)))
    await until(lambda: _waiting(world, 17))
    for task in (*outcomes, waiter):
        task.cancel()


async def test_what_batch_was_given_does_not_count_against_what_is_urgent(world: World) -> None:
    """One tenant ran much batch, another none: interactively they take turns."""
    busy, idle = await world.key("busy"), await world.key("idle")
    await world.replica(slots=1)
    queue = await world.ingress(classes=PLAIN)
    running = await queue.admit(world.request(busy, most=5000, service_class="batch"))
    order: list[str] = []

    async def wait(key: CreatedKey) -> None:
        ticket = await queue.admit(world.request(key, service_class="interactive"))
        order.append(ticket.tenant)
        await ticket.settle(prompt_tokens=10, output_tokens=10)

    waiters = []
    for number, key in enumerate((idle, idle, busy, busy), 1):
        waiters.append(asyncio.create_task(wait(key)))
        await until(lambda count=number: _waiting(world, count))  # type: ignore[misc]
    await running.settle(prompt_tokens=10, output_tokens=5000)
    await asyncio.gather(*waiters)
    assert sorted(order[:2]) == ["busy", "idle"]


async def test_rules_come_back_with_the_keys_into_an_emptied_redis(world: World) -> None:
    await world.ingress()
    before = await world.raw("GET", "rules")
    assert before
    await world.store.command("DEL", f"{world.store.prefix}rules", f"{world.store.prefix}pool")

    async def back() -> bool:
        return bool(await world.raw("GET", "rules") == before)

    await until(back)


async def _waiting(world: World, count: int) -> bool:
    return (await pool_totals(world.store)).waiting == count


async def _done(tasks: Sequence[asyncio.Task[Any]], count: int) -> bool:
    return sum(task.done() for task in tasks) >= count
