"""What the headers of a request say about its wait."""

import asyncio
from collections.abc import Mapping

import pytest

from serve_app.openai.errors import ApiError
from serve_app.queue_wishes import TIMEOUT_HEADER, read_wishes
from tests.serve_app.site import Site, error_of
from tests.serve_app.tenancy.world import until

SDK_HEADER = "x-stainless-read-timeout"


@pytest.mark.parametrize(
    ("headers", "deadline_s"),
    [
        ({}, None),
        ({TIMEOUT_HEADER: "1500"}, 1.5),
        ({SDK_HEADER: "600"}, 600),
        ({SDK_HEADER: "600", TIMEOUT_HEADER: "30000"}, 30),
        ({SDK_HEADER: "20.5", TIMEOUT_HEADER: "30000"}, 20.5),
    ],
)
def test_the_shorter_of_two_timeouts_is_the_deadline(
    headers: Mapping[str, str], deadline_s: float | None
) -> None:
    assert read_wishes(headers).deadline_s == deadline_s


@pytest.mark.parametrize("value", ["", "NaN", "inf", "-1", "0", "soon", "None", "1e9"])
def test_what_an_sdk_writes_there_is_never_an_error(value: str) -> None:
    assert read_wishes({SDK_HEADER: value}).deadline_s in (None, 1e9)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "-5",
        "1.5",
        "1e3",
        "soon",
        "NaN",
        "\u0663",
        "86400001",
        "9" * 5000,
        "0" * 11 + "9" * 5000,
    ],
)
def test_a_timeout_that_is_none_is_a_400_that_names_header_and_bounds(value: str) -> None:
    with pytest.raises(ApiError, match="from 1 to 86400000") as caught:
        read_wishes({TIMEOUT_HEADER: value})
    assert caught.value.status == 400
    assert caught.value.param == TIMEOUT_HEADER


@pytest.mark.parametrize(
    ("value", "retries"),
    [(None, None), ("0", 0), ("2", 2), ("-1", None), ("often", None), ("9" * 99, None)],
)
def test_how_often_it_was_sent_is_known_where_its_client_tells(
    value: str | None, retries: int | None
) -> None:
    headers = {} if value is None else {"x-stainless-retry-count": value}
    assert read_wishes(headers).retries == retries


@pytest.mark.anyio
async def test_who_is_refused_is_known_again_when_told_to_come_back(site: Site) -> None:
    """By key, prompt and max_tokens; another request of the same key is not taken for it."""
    await site.world.replica(slots=1)
    queue, key = await site.world.ingress(max_queued=1), await site.world.key()
    for _ in range(2):
        ticket = await queue.admit(site.world.request(key))
        await ticket.settle(prompt_tokens=1, output_tokens=1)
    ticket = await queue.admit(site.world.request(key))
    headers = await site.bearer() | {SDK_HEADER: "0.0001"}
    for changes in ({}, {}, {"max_tokens": 21}, {"temperature": 0}):
        assert (await site.chat(headers, **changes)).status_code == 429
    ask = site.world.store.command
    promised = await ask("KEYS", f"{site.world.store.prefix}back:*")
    lengths = [await ask("ZCARD", name) for name in promised]
    assert sorted(lengths) == [1, 3]
    await ticket.settle(prompt_tokens=1, output_tokens=1)


@pytest.mark.anyio
async def test_a_request_leaves_the_queue_when_its_time_is_over(site: Site) -> None:
    await site.world.replica(slots=1)
    queue, key = await site.world.ingress(), await site.world.key()
    ticket = await queue.admit(site.world.request(key))
    reply = await site.chat(await site.bearer() | {TIMEOUT_HEADER: "300"})
    assert error_of(reply)["code"] == "overloaded"
    await ticket.settle(prompt_tokens=1, output_tokens=1)


@pytest.mark.anyio
async def test_a_request_that_runs_when_its_time_is_over_ends_with_408(site: Site) -> None:
    await site.world.replica()
    site.replica.released = asyncio.Event()
    headers = await site.bearer()
    reply = await site.chat(headers | {TIMEOUT_HEADER: "400"})
    assert reply.status_code == 408
    assert reply.headers["x-should-retry"] == "false"
    assert error_of(reply)["code"] == "timeout"
    site.replica.released.set()
    await until(lambda: site.replica.submitted == 1)


@pytest.mark.anyio
async def test_an_sdk_s_timeout_does_not_end_what_runs(site: Site) -> None:
    await site.world.replica()
    site.replica.released = asyncio.Event()
    asking = asyncio.create_task(site.chat(await site.bearer() | {SDK_HEADER: "0.4"}))
    done, _ = await asyncio.wait([asking], timeout=0.8)
    assert not done
    site.replica.released.set()
    assert (await asking).status_code == 200
