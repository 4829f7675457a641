"""Redis in the forms that people run: on TCP, with TLS before it, behind Sentinel, as a cluster.

All of the same redis-server that the other tests use.
"""

import asyncio
import contextlib
import itertools
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import redis

from serve_app.tenancy.redis_server import find_binary

SLOTS = 16384


class Node:
    """One redis-server on a TCP port of this machine."""

    def __init__(self, folder: Path, *lines: str, sentinel: bool = False) -> None:
        folder.mkdir(parents=True)
        self.port = _free_port()
        config = folder / "redis.conf"
        about = [f"port {self.port}", "bind 127.0.0.1", f"dir {folder}", f"logfile {folder}/log"]
        config.write_text("\n".join([*about, *lines]) + "\n")
        command = [str(find_binary()), str(config), *(["--sentinel"] if sentinel else [])]
        self.process = subprocess.Popen(command)
        until(self._listens)

    def _listens(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port)):
            return True

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, *command: str | int) -> Any:
        with redis.Redis(port=self.port, decode_responses=True) as client:
            return client.execute_command(*command)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def until(holds: Any, within_s: float = 20.0) -> None:
    """Waits for a truth; a server that does not answer yet tells none."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if holds():
                return
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


@contextlib.contextmanager
def nodes(folder: Path, count: int, *lines: str) -> Iterator[list[Node]]:
    started: list[Node] = []
    try:
        for number in range(count):
            started.append(Node(folder / f"n{number}", *lines))
        yield started
    finally:
        for node in started:
            node.stop()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[list[Node]]:
    """Three masters that share the slots."""
    with nodes(folder, 3, "cluster-enabled yes", "cluster-node-timeout 2000") as found:
        edges = [SLOTS * at // 3 for at in range(4)]
        for node, (start, end) in zip(found, itertools.pairwise(edges), strict=True):
            node.ask("CLUSTER", "ADDSLOTS", *range(start, end))
            node.ask("CLUSTER", "MEET", "127.0.0.1", found[0].port)
        for node in found:
            until(lambda node=node: "cluster_state:ok" in node.ask("CLUSTER", "INFO"))
            until(lambda node=node: len(node.ask("CLUSTER", "SLOTS")) == 3)
        yield found


@contextlib.contextmanager
def sentinel(folder: Path) -> Iterator[tuple[Node, Node, Node]]:
    """A master, its replica, and the sentinel that calls them `main`."""
    with contextlib.ExitStack() as stack:
        master = Node(folder / "a", "appendonly yes")
        stack.callback(master.stop)
        replica = Node(folder / "b", f"replicaof 127.0.0.1 {master.port}")
        stack.callback(replica.stop)
        until(lambda: replica.ask("INFO", "replication")["master_link_status"] == "up")
        watcher = Node(
            folder / "s",
            f"sentinel monitor main 127.0.0.1 {master.port} 1",
            "sentinel down-after-milliseconds main 500",
            "sentinel failover-timeout main 3000",
            sentinel=True,
        )
        stack.callback(watcher.stop)
        until(lambda: len(watcher.ask("SENTINEL", "REPLICAS", "main")) == 1)
        yield master, replica, watcher


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that is its own authority, and its key."""
    made = (folder / "ca.pem", folder / "key.pem")
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    what = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    where = ["-nodes", "-days", "2", "-out", str(made[0]), "-keyout", str(made[1])]
    subprocess.run([*what, *where, *subject], check=True, capture_output=True)
    return made


@contextlib.asynccontextmanager
async def tls_before(node: Node, folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """A port that speaks TLS and passes all to `node`, and the authority to trust."""
    authority, key = certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, key)

    async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
        target.close()

    async def serve(source: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        answers, forth = await asyncio.open_connection("127.0.0.1", node.port)
        await asyncio.gather(pass_on(source, forth), pass_on(answers, back))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], authority
    finally:
        server.close()


def _free_port() -> int:
    """One whose cluster bus, 10000 above, is free as well."""
    while True:
        with socket.socket() as probe, socket.socket() as bus:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            if port > 55000:
                continue
            with contextlib.suppress(OSError):
                bus.bind(("127.0.0.1", port + 10000))
                return port
