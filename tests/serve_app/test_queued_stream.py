"""What a streaming client hears while its request waits for a place."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2 as httpx
import pytest

from serve_app.sections import HttpSection
from serve_app.tenancy.admit_reply import QueuePlace
from serve_app.tenancy.capacity import pool_totals
from serve_app.tenancy.ticket import Ticket
from tests.serve_app.site import CHAT, HELLO, Site, error_of
from tests.serve_app.tenancy.world import until

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def full(site: Site) -> AsyncIterator[Ticket]:
    """A pool of one place, taken."""
    await site.world.replica(slots=1)
    key, queue = await site.world.key(), await site.world.ingress()
    yield await queue.admit(site.world.request(key))


async def free(ticket: Ticket) -> None:
    await ticket.settle(prompt_tokens=1, output_tokens=1)


async def waiting(site: Site, count: int = 1) -> None:
    async def holds() -> bool:
        return (await pool_totals(site.world.store)).waiting == count

    await until(holds)


def impatient(site: Site) -> None:
    """A client that waits hears of it soon."""
    site.desk.http = HttpSection(keep_alive_s=0.05)


async def streamed(site: Site, **fields: Any) -> httpx.Response:
    return await site.chat(await site.bearer(rpm=60), stream=True, **fields)


async def test_a_wait_is_told_by_place_until_the_answer_comes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(site)
    asked, place = list[str](), site.desk.place

    async def counted_place(rid: str) -> QueuePlace | None:
        asked.append(rid)
        return await place(rid)

    monkeypatch.setattr(site.desk, "place", counted_place)
    async with full(site) as ticket:
        asking = asyncio.create_task(streamed(site, colour="blue"))
        await until(lambda: len(asked) > 2)
        await free(ticket)
        reply = await asking
    assert reply.status_code == 200
    assert reply.headers["x-deeprequest-ignored"] == "colour"
    assert reply.headers["x-ratelimit-remaining-requests"] == "59"
    assert reply.headers["content-type"].startswith("text/event-stream")
    *comments, first = reply.text.partition("data: ")[0].split("\n\n")
    told = [comment for comment in comments if comment != ": keep-alive"]  # of the way to the start
    assert len(told) >= 2
    assert first == ""
    assert all(comment.startswith(": queued position=1") for comment in told)
    assert reply.text.endswith("data: [DONE]\n\n")
    assert await site.counted() == {"200": 1}


async def test_a_short_wait_leaves_the_headers_to_the_answer(site: Site) -> None:
    async with full(site) as ticket:
        asking = asyncio.create_task(streamed(site))
        await waiting(site)
        await free(ticket)
        reply = await asking
    assert "queued" not in reply.text
    assert reply.headers["server-timing"].startswith("queue;dur=")


async def test_a_refusal_after_a_short_wait_keeps_its_status(site: Site) -> None:
    headers = {**await site.bearer(), "x-stainless-read-timeout": "0.01"}
    async with full(site):
        reply = await site.chat(headers, stream=True)
    assert reply.status_code == 429
    assert error_of(reply)["code"] == "overloaded"
    assert "retry-after" in reply.headers


async def test_a_refusal_after_a_long_wait_is_the_last_event(site: Site) -> None:
    impatient(site)
    headers = {**await site.bearer(), "x-stainless-read-timeout": "0.4"}
    async with full(site):
        reply = await site.chat(headers, stream=True)
    assert reply.status_code == 200
    *_, last = reply.text.split("\n\n")[:-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "overloaded"
    assert await site.counted() == {"429": 1}


async def test_a_client_that_leaves_gives_its_place_back(site: Site) -> None:
    impatient(site)
    headers = await site.bearer()
    async with full(site):
        for wait_s in (0.0, 0.15):  # before and after the headers went out
            asking = asyncio.create_task(site.chat(headers, stream=True))
            await waiting(site)
            await asyncio.sleep(wait_s)
            asking.cancel()
            await asyncio.wait([asking])
            await waiting(site, 0)
    assert await site.counted() == {"499": 2}


async def test_what_is_wrong_with_a_request_is_told_before_it_waits(site: Site) -> None:
    headers = await site.bearer()
    async with full(site):
        body = {**HELLO, "stream": True, "temperature": 3}
        reply = await site.client.post(CHAT, json=body, headers=headers)
    assert error_of(reply)["param"] == "temperature"
