"""Pages of configured origins may call and read; all others get no word of permission."""

import httpx2 as httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from serve_app.cors import Cors

OURS, THEIRS = "https://app.example", "https://evil.example"
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("slow down", 429, {"retry-after": "3"})(scope, receive, send)


def client() -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=Cors(refusing, [OURS]))
    return httpx.AsyncClient(transport=transport, base_url="http://server")


def preflight(origin: str, method: str = "POST") -> dict[str, str]:
    asked = {"access-control-request-method": method}
    return {"origin": origin, "access-control-request-headers": "authorization", **asked}


async def test_a_preflight_of_a_configured_origin_is_allowed() -> None:
    async with client() as browser:
        reply = await browser.options("/v1/chat/completions", headers=preflight(OURS))
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == OURS
    assert reply.headers["access-control-allow-headers"] == "authorization"
    assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize("asked", [preflight(THEIRS), preflight(OURS, "DELETE")])
async def test_any_other_preflight_is_refused_in_the_envelope(asked: dict[str, str]) -> None:
    async with client() as browser:
        reply = await browser.options("/v1/chat/completions", headers=asked)
    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "origin_not_allowed"


async def test_only_a_configured_origin_may_read_what_is_said_refusals_included() -> None:
    async with client() as browser:
        ours = await browser.post("/", headers={"origin": OURS})
        theirs = await browser.post("/", headers={"origin": THEIRS})
    assert ours.headers["access-control-allow-origin"] == OURS
    assert "retry-after" in ours.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in theirs.headers
