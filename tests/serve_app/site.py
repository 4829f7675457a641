"""The application over a real Redis and a scripted model, and a client of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
from prometheus_client.parser import text_string_to_metric_families

from cluster.request import EngineStats, FinishReason, RequestOutput, Usage
from cluster.text.tokenizer import Tokenizer
from serve_app.chat_service import ChatService
from serve_app.deltas import DeltaLinks, DeltaServer, ReplicaLostError, Submission
from serve_app.desk import Desk, ModelFacts
from serve_app.ledger.reader import UsageReader
from serve_app.metrics import Metrics
from serve_app.once import Once
from serve_app.routes import ClusterView, create_app
from serve_app.sections import HttpSection
from serve_app.tenancy.key_admin import KeyAdmin
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.replies import Replies
from serve_app.token_service import TokenService
from tests.serve_app.ledger.breaking import BreakingDatabase
from tests.serve_app.tenancy.world import World

MODEL = Path(__file__).resolve().parents[2] / "configs" / "models" / "deeprequest-demo"
MODEL_ID = "deepseek-r1-32b"
CONTEXT = 2048
CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {
    "model": MODEL_ID,
    "max_tokens": 20,
    "messages": [{"role": "user", "content": "hello"}],
}


class ScriptedReplica:
    """Thinks "hm" and says "hi"; when `lost`, its machine dies first. Between the two it waits to
    be `released`, if told to, and it takes `takes_s`."""

    def __init__(self) -> None:
        self.lost = False
        self.takes_s = 0.0
        self.submitted = 0
        self.released: asyncio.Event | None = None

    async def submit(self, submission: bytes) -> None:
        self.submitted += 1
        if self.lost:
            raise ReplicaLostError
        decoded = Submission.decode(submission)
        links = DeltaLinks("r1", lambda _: None)
        await links.connect(decoded.address)
        for request in decoded.requests:
            thought = RequestOutput(request.request_id, reasoning="hm", token_ids=[7])
            links.send(decoded.address, [thought])
        await asyncio.sleep(self.takes_s)
        if self.released is not None:
            await self.released.wait()
        for request in decoded.requests:
            said = RequestOutput(request.request_id, content="hi", token_ids=[8, 9])
            said.reasoning_ended, said.finish_reason = True, FinishReason.STOP
            said.usage = Usage(len(request.prompt_token_ids), 3, 0, 1)
            links.send(decoded.address, [said])
        await links.close()


@dataclass
class Load:
    ready: bool
    replica: str = "r1"
    stats: EngineStats = field(default_factory=EngineStats)


class Site:
    """The application over one World, and a client of it."""

    def __init__(self, world: World, desk: Desk, once: Once, replica: ScriptedReplica) -> None:
        self.world, self.desk, self.replica = world, desk, replica
        self.tokens = TokenService(desk, ChatService(desk))
        self.store_is_up = True
        self.loads: list[Load] = []
        self.ledger = BreakingDatabase(f"sqlite:///{world.folder}/ledger.db")
        keys, usage = KeyAdmin(world.store, world.keys), UsageReader(world.store, self.ledger)
        self.app = create_app(desk, once, self._view, keys, usage)
        transport = httpx.ASGITransport(app=self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def _view(self) -> ClusterView:
        if not self.store_is_up:
            raise StoreUnavailable("away")
        return ClusterView([*self.loads], 0)

    async def bearer(self, **limits: Any) -> dict[str, str]:
        """The headers of a new key."""
        return {"authorization": f"Bearer {(await self.world.key(**limits)).secret}"}

    async def chat(self, headers: dict[str, str], **changes: Any) -> httpx.Response:
        return await self.client.post(CHAT, json={**HELLO, **changes}, headers=headers)

    async def counted(self) -> dict[str, float]:
        """Answers of the chat route by status."""
        text = (await self.client.get("/metrics")).text
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return {
            s.labels["status"]: s.value for s in samples if s.name == "deeprequest_requests_total"
        }


@contextlib.asynccontextmanager
async def opened_site(
    redis: RedisServer, tokenizer: Tokenizer, folder: Path, **admission: Any
) -> AsyncIterator[Site]:
    """A site with these settings of admission."""
    deltas = DeltaServer("127.0.0.1", range(29200, 29300))
    await deltas.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(deltas.stop)
        world = await stack.enter_async_context(World(redis.url, folder))
        queue = await world.ingress(**admission)
        replica, metrics = ScriptedReplica(), Metrics("in-1")
        desk = Desk(
            ModelFacts(MODEL_ID, "fp_1", CONTEXT, 1_700_000_000, "deeprequest-demo"),
            HttpSection(),
            tokenizer,
            queue,
            replica,
            deltas,
            metrics,
        )
        once = Once(Replies(world.store, queue.ingress), metrics, 30.0)
        found = Site(world, desk, once, replica)
        await stack.enter_async_context(found.client)
        yield found


def error_of(reply: httpx.Response) -> dict[str, Any]:
    """The error of an envelope and nothing else."""
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error
