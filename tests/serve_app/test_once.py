"""A request with an Idempotency-Key is run once, whoever sends it how often."""

import asyncio
import json
from typing import Any

import httpx2 as httpx
import pytest

from serve_app.tenancy.usage import UsageMeter
from tests.serve_app.site import CHAT, HELLO, Site, error_of
from tests.serve_app.tenancy.world import until

pytestmark = pytest.mark.anyio


async def named(site: Site, headers: dict[str, str], name: str = "n", **fields: Any) -> Any:
    return await site.chat({**headers, "idempotency-key": name}, **fields)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_request_again_gets_the_kept_reply_uncharged(
    site: Site, stream: bool
) -> None:
    await site.world.replica()
    headers = await site.bearer(rpm=2)
    first = await named(site, headers, stream=stream, colour="blue")
    assert "idempotent-replayed" not in first.headers
    for _ in range(3):
        again = await named(site, headers, stream=stream, colour="blue")
        assert again.status_code == 200
        assert again.text == first.text
        assert again.headers["idempotent-replayed"] == "true"
        for name in ("content-type", "x-deeprequest-ignored", "x-deeprequest-model"):
            assert again.headers[name] == first.headers[name]
        assert again.headers["x-ratelimit-limit-requests"] == "2"
    assert site.replica.submitted == 1
    assert await site.counted() == {"200": 4}


async def test_while_it_runs_the_client_is_told_to_come_back(site: Site) -> None:
    await site.world.replica()
    headers = await site.bearer()
    site.replica.released = asyncio.Event()
    first = asyncio.create_task(named(site, headers))
    await until(lambda: site.replica.submitted)
    busy = await named(site, headers)
    assert busy.status_code == 409
    assert error_of(busy)["code"] == "idempotency_in_progress"
    assert int(busy.headers["retry-after-ms"]) >= 1000
    site.replica.released.set()
    reply = await first
    assert (await named(site, headers)).text == reply.text
    assert site.replica.submitted == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_hangs_up_finds_the_reply_later(site: Site, stream: bool) -> None:
    await site.world.replica()
    headers = await site.bearer()
    site.replica.released = asyncio.Event()
    left = asyncio.create_task(named(site, headers, stream=stream))
    await until(lambda: site.replica.submitted)
    left.cancel()
    await asyncio.wait([left])
    site.replica.released.set()
    replies: list[httpx.Response] = []

    async def kept() -> bool:
        replies.append(await named(site, headers, stream=stream))
        return bool(replies[-1].status_code == 200)

    await until(kept)
    assert "hi" in replies[-1].text
    assert {reply.status_code for reply in replies[:-1]} <= {409}
    assert site.replica.submitted == 1
    entries = await UsageMeter(site.world.store).ledger()
    assert [entry.how for entry in entries] == ["ok"]


async def test_another_body_under_the_same_name_is_refused(site: Site) -> None:
    await site.world.replica()
    headers = await site.bearer()
    await named(site, headers)
    reply = await named(site, headers, max_tokens=19)
    assert reply.status_code == 422
    assert error_of(reply)["code"] == "idempotency_key_reused"
    assert (await named(site, await site.bearer(), max_tokens=19)).status_code == 200


async def test_a_refusal_is_not_kept(site: Site) -> None:
    headers = await site.bearer(rpm=1)
    await site.world.replica()
    wrong = await named(site, headers, temperature=3)
    assert (wrong.status_code, error_of(wrong)["param"]) == (400, "temperature")
    assert (await site.chat(headers)).status_code == 200
    for _ in range(2):
        assert (await named(site, headers, "m")).status_code == 429
    site.replica.lost = True
    unlimited = await site.bearer()
    assert (await named(site, unlimited)).status_code == 503
    site.replica.lost = False
    assert (await named(site, unlimited)).status_code == 200
    assert await site.counted() == {"400": 1, "200": 2, "429": 2, "503": 1}


async def test_a_stream_that_failed_is_not_kept(site: Site) -> None:
    await site.world.replica()
    headers = await site.bearer()
    site.replica.lost = True
    failed = await named(site, headers, stream=True)
    assert "replica_lost" in failed.text
    site.replica.lost = False
    again = await named(site, headers, stream=True)
    assert again.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("name", ["", " ", "a b", "x" * 256, "\x7f"])
async def test_a_name_is_visible_ascii_within_bounds(site: Site, name: str) -> None:
    headers = {**await site.bearer(), "idempotency-key": name}
    reply = await site.client.post(CHAT, json=HELLO, headers=headers)
    assert reply.status_code == 400
    assert error_of(reply)["param"] == "Idempotency-Key"


async def test_a_request_is_stopped_by_its_id_and_its_owner_alone(site: Site) -> None:
    await site.world.replica()
    headers, stranger = await site.bearer(), await site.bearer()
    site.replica.released = asyncio.Event()
    asking = asyncio.create_task(site.chat(headers, stream=True))
    await until(lambda: site.replica.submitted)
    rid = await _running(site)
    url = f"{CHAT}/{rid}/cancel"
    refused = await site.client.post(url, headers=stranger)
    assert (refused.status_code, error_of(refused)["code"]) == (404, "request_not_found")
    stopped = await site.client.post(url, headers=headers)
    assert stopped.json() == {"id": rid, "object": "chat.completion.cancelled", "cancelled": True}
    events = (await asking).text.split("\n\n")[:-1]
    assert json.loads(events[0].removeprefix("data: "))["id"] == rid
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "request_cancelled"
    assert (await site.client.post(url, headers=headers)).status_code == 404


async def _running(site: Site) -> str:
    """The id of the only request in flight."""
    store = site.world.store
    (ingress,) = await store.command("ZRANGE", f"{store.prefix}ls", 0, -1)
    (rid,) = await store.command("SMEMBERS", f"{store.prefix}in:{ingress}")
    return str(rid)
