"""How many ledger entries a second the sink moves from a real Redis into a database.

Prints rows per second into SQLite in a temporary directory, and into the PostgreSQL that
DEEPREQUEST_TEST_POSTGRES_URL names, where it does. Run with `make bench`, or alone:

    python -m tests.bench.bench_ledger
"""

import asyncio
import os
import tempfile
import time
from pathlib import Path

from serve_app.ledger.database import LedgerDatabase
from serve_app.ledger.sink import LedgerSink
from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.store import Store

ENTRIES = 20_000
FILL = """
for i = 1, 1000 do
  redis.call('XADD', KEYS[1], '*', 'rid', ARGV[1] .. i, 'key', 'abcdefgh', 'ten', 'acme', 'model',
    'deepseek-r1-32b', 'class', 'default', 'how', 'ok', 'day', '20000', 'in', '812', 'cached',
    '400', 'out', '1903', 'reas', '1500', 'cost', '4450', 'cur', 'USD', 'queued', '3', 'ran',
    '41000', 'epoch', 'e1')
end
"""


async def rows_per_second(redis_url: str, url: str, tag: str) -> float:
    async with Store(redis_url, tag, timeout_s=5.0) as store:
        for chunk in range(ENTRIES // 1000):
            await store.command("EVAL", FILL, 1, f"{store.prefix}led", f"chatcmpl-{tag}-{chunk}-")
        database = LedgerDatabase(url)
        sink = LedgerSink(store, database, "bench")
        began = time.perf_counter()
        while await sink.step():
            pass
        took = time.perf_counter() - began
        database.close()
    return ENTRIES / took


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        named = {"sqlite": f"sqlite:///{folder}/ledger.db"}
        if "DEEPREQUEST_TEST_POSTGRES_URL" in os.environ:
            named["postgresql"] = os.environ["DEEPREQUEST_TEST_POSTGRES_URL"]
        with RedisServer(Path(folder)) as server:
            for kind, url in named.items():
                tag = f"{kind}-{time.time_ns()}"
                rate = asyncio.run(rows_per_second(server.url, url, tag))
                print(f"ledger sink into {kind}: {rate:,.0f} rows/s")


def test_ledger_sink() -> None:
    main()


if __name__ == "__main__":
    main()
