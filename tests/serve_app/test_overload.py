"""The official SDK, as it comes, at a service that twice as many ask as there is room for."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from cluster.text.tokenizer import Tokenizer
from serve_app.tenancy.redis_server import RedisServer
from tests.serve_app.site import HELLO, MODEL_ID, opened_site

pytestmark = pytest.mark.anyio

SLOTS, PLACES = 4, 16
CLIENTS = 2 * (SLOTS + PLACES)
JOB_S = 0.1


async def test_the_sdk_with_its_default_retries_sees_no_error_at_twice_the_load(
    redis_server: RedisServer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """All ask the same, so only how often they sent it tells those who come back from others."""
    answers: Counter[tuple[str, int]] = Counter()

    async def put_down(reply: httpx.Response) -> None:
        answers[reply.request.headers["x-stainless-retry-count"], reply.status_code] += 1

    async with opened_site(redis_server, tokenizer, tmp_path, max_queued=PLACES) as site:
        await site.world.replica(slots=SLOTS)
        site.replica.takes_s = JOB_S
        key = await site.world.key()
        transport = httpx.ASGITransport(app=site.app)

        async def ask(times: int) -> None:
            http = httpx.AsyncClient(transport=transport, event_hooks={"response": [put_down]})
            async with openai.AsyncOpenAI(
                base_url="http://test/v1", api_key=key.secret, http_client=http
            ) as client:
                for _ in range(times):
                    reply = await client.chat.completions.create(
                        model=MODEL_ID, messages=HELLO["messages"], max_tokens=20
                    )
                    assert reply.choices[0].message.content

        await ask(8)  # what a job takes is known then
        answers.clear()
        await asyncio.gather(*(ask(4) for _ in range(CLIENTS)))
    refused, back = answers["0", 429], answers["1", 200]
    assert refused >= CLIENTS / 4
    # All of them on a quiet machine; where the loop stands still for half a second, who comes late
    # comes once more.
    assert back >= 0.6 * refused
