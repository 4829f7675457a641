"""A name runs one request once; its reply is kept within bounds of time and size."""

import asyncio
from typing import Any

import pytest

from serve_app.tenancy.refusals import Refusal
from serve_app.tenancy.replies import (
    Claim,
    NameReused,
    Replies,
    ReplyNotKept,
    ReplySettings,
    StillRunning,
    StoredReply,
)
from serve_app.tenancy.session import SessionSettings
from tests.serve_app.tenancy.world import World

pytestmark = pytest.mark.anyio
BODY = b'{"model": "m"}'
REPLY = StoredReply(200, {"content-type": "application/json"}, '{"id": "naïve 日本語 🙂"}')


async def replies(world: World, session: SessionSettings | None = None, **bounds: Any) -> Replies:
    """As another ingress of the pool has them."""
    queue = await (world.ingress() if session is None else world.ingress(session=session))
    return Replies(world.store, queue.ingress, ReplySettings(**bounds))


async def claimed(found: Replies, name: str = "n", key: str = "k1", body: bytes = BODY) -> Claim:
    claim = await found.claim(key, name, body)
    assert isinstance(claim, Claim)
    return claim


async def test_of_fifty_at_once_over_two_ingresses_one_runs(world: World) -> None:
    ingresses = [await replies(world), await replies(world)]

    async def attempt(number: int) -> Any:
        try:
            return await ingresses[number % 2].claim("k1", "n", BODY)
        except Refusal as refusal:
            return refusal

    outcomes = await asyncio.gather(*(attempt(number) for number in range(50)))
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds.count(Claim) == 1
    assert kinds.count(StillRunning) == 49


async def test_the_reply_is_given_again_by_any_ingress(world: World) -> None:
    mine, other = await replies(world), await replies(world)
    await mine.keep(await claimed(mine), REPLY)
    for found in (mine, other, mine):
        assert await found.claim("k1", "n", BODY) == REPLY


async def test_a_name_belongs_to_its_key_and_its_content(world: World) -> None:
    found = await replies(world)
    first = await claimed(found)
    with pytest.raises(NameReused):
        await found.claim("k1", "n", BODY + b" ")
    await claimed(found, key="k2")
    await claimed(found, name="m")
    await found.keep(first, REPLY)
    with pytest.raises(NameReused):
        await found.claim("k1", "n", b"other")


async def test_a_dropped_claim_may_be_run_again_and_keeps_nothing(world: World) -> None:
    found = await replies(world)
    first = await claimed(found)
    await found.drop(first)
    second = await claimed(found)
    await found.keep(first, REPLY)
    with pytest.raises(StillRunning):
        await found.claim("k1", "n", BODY)
    await found.drop(first)
    await found.keep(second, REPLY)
    await found.drop(second)
    assert await found.claim("k1", "n", BODY) == REPLY


async def test_a_claim_ends_with_the_lease_of_its_ingress(world: World) -> None:
    session = SessionSettings(lease_s=60.0, beat_s=30.0, tick_s=30.0)
    queue = await world.ingress(session=session)
    dying, living = Replies(world.store, queue.ingress), await replies(world)
    old = await claimed(dying)
    await queue.stop()
    new = await claimed(living)
    await dying.keep(old, REPLY)
    with pytest.raises(StillRunning):
        await living.claim("k1", "n", BODY)
    await living.keep(new, REPLY)


async def test_the_wait_grows_with_the_age_of_the_run(world: World) -> None:
    assert StillRunning(0.01).headers()["retry-after-ms"] == "1000"
    assert StillRunning(7.5).headers()["retry-after-ms"] == "7500"
    assert StillRunning(900).headers()["retry-after"] == "60"


async def test_a_reply_is_forgotten_after_its_time(world: World) -> None:
    found = await replies(world, keep_s=0.05)
    await found.keep(await claimed(found), REPLY)
    await asyncio.sleep(0.1)
    await claimed(found)


async def test_a_reply_too_large_is_told_and_not_run_again(world: World) -> None:
    found = await replies(world, largest_bytes=10)
    await found.keep(await claimed(found), REPLY)
    with pytest.raises(ReplyNotKept) as caught:
        await found.claim("k1", "n", BODY)
    assert caught.value.headers() == {"x-should-retry": "false"}


async def test_the_oldest_go_when_all_together_are_too_large(world: World) -> None:
    found = await replies(world, most_bytes=5000)
    body = StoredReply(200, {}, "x" * 1000)
    for number in range(20):
        await found.keep(await claimed(found, f"n{number}"), body)
        assert int(await world.raw("GET", "idb")) <= 5000
    assert isinstance(await found.claim("k1", "n19", BODY), StoredReply)
    assert isinstance(await found.claim("k1", "n0", BODY), Claim)
    kept = await world.raw("ZCARD", "idm")
    assert 3 <= kept <= 5
    assert await world.raw("HLEN", "idz") == kept


async def test_bytes_of_replies_that_expired_are_given_back(world: World) -> None:
    found = await replies(world, keep_s=0.05)
    for _ in range(3):
        await found.keep(await claimed(found), REPLY)
        await asyncio.sleep(0.1)
    size = int(await world.raw("GET", "idb"))
    await found.keep(await claimed(found, "m"), REPLY)
    assert int(await world.raw("GET", "idb")) == size
    assert await world.raw("ZCARD", "idm") == 1


async def test_only_digests_of_names_and_contents_reach_redis(world: World) -> None:
    found = await replies(world)
    claim = await claimed(found, name="private-name", body=b"private-text")
    assert "private" not in claim.name
    assert b"private" not in await world.raw("GET", f"idem:{claim.name}")
