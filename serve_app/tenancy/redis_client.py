"""One client for every form of Redis: a single server, Sentinel, Cluster.

Owns the choice of the client library's class and its settings. Retries and timeouts of whole calls
are store.py's: here each call is made once, and in a cluster once more, by its newest map.
"""

from typing import Any, cast

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from serve_app.tenancy.redis_url import RedisTarget

Client = redis.Redis | RedisCluster


def connect(
    target: RedisTarget, *, timeout_s: float, connect_timeout_s: float, connections: int
) -> Client:
    """A client with at most so many connections (to each node); none is opened yet."""
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
        asked = {"username": target.sentinel_username, "password": target.sentinel_password}
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
