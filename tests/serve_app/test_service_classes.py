"""How clients say how urgent a request is, and what they are told."""

import json

import pytest

from tests.serve_app.site import Site, error_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("header", "tier", "service_class", "told"),
    [
        (None, None, "default", "default"),
        (None, "auto", "default", "default"),
        (None, "flex", "batch", "flex"),
        (None, "priority", "interactive", "priority"),
        (None, "fast", "interactive", "priority"),
        ("batch", None, "batch", "flex"),
        ("batch", "priority", "batch", "flex"),
        ("system", None, "interactive", "priority"),
    ],
)
async def test_the_class_that_served_is_told_by_header_and_tier(
    site: Site, header: str | None, tier: str | None, service_class: str, told: str
) -> None:
    await site.world.replica()
    headers = await site.bearer() | ({"x-deeprequest-class": header} if header else {})
    reply = await site.chat(headers, **({"service_tier": tier} if tier else {}))
    assert reply.headers["x-deeprequest-class"] == service_class
    assert reply.json()["service_tier"] == told
    streamed = await site.chat(headers, stream=True, **({"service_tier": tier} if tier else {}))
    assert streamed.headers["x-deeprequest-class"] == service_class
    first = streamed.text.partition("data: ")[2].partition("\n")[0]
    assert json.loads(first)["service_tier"] == told


async def test_a_raw_prompt_is_queued_by_class_as_well(site: Site) -> None:
    await site.world.replica()
    body = {"model": "deepseek-r1-32b", "prompt": "a", "max_tokens": 5, "service_tier": "flex"}
    reply = await site.client.post("/v1/completions", json=body, headers=await site.bearer())
    assert reply.headers["x-deeprequest-class"] == "batch"
    assert reply.json()["service_tier"] == "flex"


async def test_a_class_that_does_not_exist_is_a_400_that_names_the_header(site: Site) -> None:
    headers = await site.bearer() | {"x-deeprequest-class": "gold"}
    reply = await site.chat(headers)
    assert reply.status_code == 400
    error = error_of(reply)
    assert error["param"] == "x-deeprequest-class"
    assert "system, interactive, default, batch" in error["message"]
    assert await site.counted() == {"400": 1}
