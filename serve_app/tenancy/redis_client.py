"""One client for every form of Redis: a single server, Sentinel, Cluster.

Owns the choice of the client library's class and its settings, and how calls get there: over one
connection that all share (wire.py), in a cluster over connections to each node. Whether a call that
failed is made again is store.py's to know: here each is made once, in a cluster once more, by its
newest map.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError

from serve_app.tenancy.redis_url import RedisTarget
from serve_app.tenancy.wire import Args, Connection, Wire

Client = redis.Redis | RedisCluster

MOST_STALLS = 2
"""Timeouts that came late are this event loop's fault, not Redis's; so many are forgiven a call."""


class Calls(Protocol):
    """A way to Redis."""

    async def call(self, args: Args) -> Any:
        """The answer to a command; raises what the client library does."""

    async def aclose(self) -> None:
        """Closes the connections."""


def calls_to(target: RedisTarget, *, silence_s: float, connections: int) -> Calls:
    """`silence_s`: after so long without an answer a call has failed. `connections`: to each node
    of a cluster."""
    how: dict[str, Any] = {"connect_timeout_s": silence_s, "connections": connections}
    if target.kind == "cluster":
        cluster = connect(target, timeout_s=silence_s, **how)
        return ClusterCalls(cluster, silence_s, connections)
    client = cast(redis.Redis, connect(target, timeout_s=None, **how))
    opened = cast(Callable[[], Connection], client.connection_pool.make_connection)
    return Wire(opened, client.response_callbacks, silence_s)


class ClusterCalls:
    """Calls through the library's own pools, which follow a cluster's map."""

    def __init__(self, client: Client, timeout_s: float, connections: int) -> None:
        self._client, self._timeout_s = client, timeout_s
        self._execute: Callable[..., Awaitable[Any]] = cast(Any, client).execute_command
        self._slots = asyncio.Semaphore(connections)

    async def call(self, args: Args) -> Any:
        """See `Calls.call`."""
        for stall in range(MOST_STALLS + 1):
            async with self._slots:
                began = time.monotonic()
                try:
                    return await self._execute(*args)
                except TimeoutError:
                    late = time.monotonic() - began > 1.5 * self._timeout_s
                    if not late or stall == MOST_STALLS:
                        raise
        raise AssertionError("the last stall is raised")

    async def aclose(self) -> None:
        """See `Calls.aclose`."""
        await self._client.aclose()


def connect(
    target: RedisTarget, *, timeout_s: float | None, connect_timeout_s: float, connections: int
) -> Client:
    """A client with at most so many connections (to each node); none is opened yet. `timeout_s`: of
    reading an answer; None: somebody else watches over that."""
    account: dict[str, Any] = {"username": target.username, "password": target.password}
    how: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "decode_responses": True,
        "protocol": 2,
        "driver_info": None,
    } | _tls(target)
    once = how | {"retry": Retry(NoBackoff(), 0)}
    if target.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in target.hosts]
        again = Retry(NoBackoff(), 1)
        return RedisCluster(
            startup_nodes=nodes, max_connections=connections, retry=again, **how, **account
        )
    if target.kind == "sentinel":
        asked: dict[str, Any] = {
            "username": target.sentinel_username,
            "password": target.sentinel_password,
            "socket_timeout": connect_timeout_s,
        }
        sentinel: Any = cast(Any, Sentinel)(list(target.hosts), sentinel_kwargs=once | asked)
        master = once | account | {"db": target.db, "max_connections": connections}
        found: redis.Redis = sentinel.master_for(target.service, **master)
        return found
    if target.socket:
        how_reached: dict[str, Any] = {"unix_socket_path": target.socket}
    else:
        host, port = target.hosts[0]
        how_reached = {"host": host, "port": port}
    return redis.Redis(**how_reached, db=target.db, max_connections=connections, **once, **account)


def _tls(target: RedisTarget) -> dict[str, Any]:
    return {"ssl": True, "ssl_ca_certs": target.ca_file} if target.tls else {}
