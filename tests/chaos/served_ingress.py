"""One ingress as a process of its own: the application over a real Redis, and a model that stalls.

    python -m tests.chaos.served_ingress REDIS_URL POOL FOLDER

Prints its port and serves until SIGTERM. FOLDER holds the pepper and the tenants file.
"""

import asyncio
import sys
from pathlib import Path

import uvicorn

from cluster.request import RequestOutput
from cluster.text.tokenizer import Tokenizer
from serve_app.deltas import DeltaLinks, DeltaServer, Submission
from serve_app.desk import Desk, ModelFacts
from serve_app.http_limits import HttpLimits
from serve_app.ledger.reader import UsageReader
from serve_app.metrics import Metrics
from serve_app.once import Once
from serve_app.routes import ClusterView, create_app
from serve_app.sections import HttpSection
from serve_app.tenancy.key_admin import KeyAdmin
from serve_app.tenancy.replies import Replies
from tests.serve_app.site import CONTEXT, MODEL, MODEL_ID
from tests.serve_app.tenancy.world import World

TOKEN = "x"


class StallingReplica:
    """Gives each request all the tokens it may have but the last, which never comes."""

    async def submit(self, submission: bytes) -> None:
        decoded = Submission.decode(submission)
        links = DeltaLinks("r1", lambda _: None)
        await links.connect(decoded.address)
        try:
            for request in decoded.requests:
                for _ in range(request.params.max_tokens - 1):
                    delta = RequestOutput(request.request_id, reasoning=TOKEN, token_ids=[8])
                    links.send(decoded.address, [delta])
                    await asyncio.sleep(0)
            await asyncio.Event().wait()
        finally:
            await links.close()


async def serve(url: str, pool: str, folder: Path) -> None:
    """Until SIGTERM."""
    deltas = DeltaServer("127.0.0.1", range(29300, 29400))
    await deltas.start()
    async with World(url, folder, pool) as world:
        queue, metrics = await world.ingress(), Metrics("in")
        desk = Desk(
            ModelFacts(MODEL_ID, "fp_1", CONTEXT, 1_700_000_000, None),
            HttpSection(),
            Tokenizer(str(MODEL)),
            queue,
            StallingReplica(),
            deltas,
            metrics,
        )

        async def view() -> ClusterView:
            return ClusterView([], 0)

        once = Once(Replies(world.store, queue.ingress), metrics, 30.0)
        keys, usage = KeyAdmin(world.store, world.keys), UsageReader(world.store, None)
        app = create_app(desk, once, view, keys, usage)
        config = uvicorn.Config(HttpLimits(app), port=0, log_level="critical", backlog=1024)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        sys.stdout.write(f"{server.servers[0].sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await serving
    await deltas.stop()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
