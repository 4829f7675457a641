"""CoreClient: the replica's side of its ranks.

Owns a gang's life as the replica sees it: the private directory, the listening socket, who has
come, whether each still lives, and the removal of everything at the end. Any rank's end is the end
of all. Knows requests only as messages to rank 0; no text, no torch.
"""

import asyncio
import hmac
import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import msgspec

from cluster.config import EngineConfig
from cluster.engine.core_messages import (
    AbortRequest,
    AddRequest,
    EngineFacts,
    Failed,
    FromRank,
    Hello,
    Progress,
    Ready,
    Start,
    StepOutputs,
    ToRank,
    decode_from_rank,
    encode,
)
from cluster.engine.rank_link import beat_period
from cluster.request import EngineCoreOutputs, EngineRequest
from cluster.worker.channel import JOIN_TIMEOUT_S, LENGTH, ChannelClosedError, cut_frame, tune_tcp
from cluster.worker.gang import Gang, RankSpec

GangFactory = Callable[[list[RankSpec]], Gang]
START_POLL_S = 0.25
SILENT_BEATS = 3
"""Heartbeats a rank may miss before an error's message mentions it."""


class EngineDeadError(Exception):
    """The engine cannot compute; the message says why."""


@dataclass(frozen=True)
class RankInfo:
    """One rank's process."""

    rank: int
    pid: int
    node: str


class _Link(asyncio.Protocol):
    """One rank's connection."""

    def __init__(self, client: "CoreClient") -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._greeting: asyncio.TimerHandle | None = None
        self.info: RankInfo | None = None
        self.missed_beats = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not an isinstance: uvloop's transports are no subclasses of asyncio's.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        self._client.transports.add(transport)
        self._greeting = asyncio.get_running_loop().call_later(JOIN_TIMEOUT_S, self.close)

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            while (frame := cut_frame(self._received)) is not None:
                self._take(decode_from_rank(frame))
        except (ChannelClosedError, msgspec.MsgspecError):
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._transport is not None
        self._client.transports.discard(self._transport)
        if self._greeting is not None:
            self._greeting.cancel()
        if self.info is not None:
            self._client.fail(f"rank {self.info.rank} is gone (pid {self.info.pid})")

    def send(self, message: ToRank) -> None:
        assert self._transport is not None
        frame = encode(message)
        self._transport.write(LENGTH.pack(len(frame)) + frame)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _take(self, message: FromRank) -> None:
        self.missed_beats = 0
        if self.info is not None:
            self._client.receive(self.info.rank, message)
        elif isinstance(message, Hello) and self._client.admit(message, self):
            self.info = RankInfo(message.rank, message.pid, message.node)
            assert self._greeting is not None
            self._greeting.cancel()
        else:
            self.close()


class CoreClient:
    """One gang, from its start to its end; not to be started twice."""

    def __init__(
        self,
        config: EngineConfig,
        gang_factory: GangFactory,
        on_step: Callable[[EngineCoreOutputs], None],
        on_death: Callable[[str], None],
        host: str | None = None,
    ) -> None:
        """`on_death(reason)` is called once if the gang ends before `stop`.

        `host`: this node's address, when there are ranks on other nodes.
        """
        self.transports: set[asyncio.Transport] = set()
        self._config = config
        self._gang_factory = gang_factory
        self._on_step = on_step
        self._on_death = on_death
        self._host = host
        self._token = secrets.token_hex(16)
        self._links: dict[int, _Link] = {}
        self._meeting: Start | None = None
        self._gang: Gang | None = None
        self._server: asyncio.Server | None = None
        self._directory: str | None = None
        self._on_progress: Callable[[str], None] = lambda _: None
        self._ready: asyncio.Future[EngineFacts] = asyncio.get_running_loop().create_future()
        self._end: asyncio.Task[None] | None = None
        self.reason: str | None = None
        """Why it cannot compute; None while it can."""

    async def start(self, on_progress: Callable[[str], None] | None = None) -> EngineFacts:
        """Start the ranks and wait until all have computed a step.

        Raises:
            EngineDeadError: a rank failed; the message names it and its reason. Nothing is left.
        """
        self._on_progress = on_progress or self._on_progress
        watch: asyncio.Task[None] | None = None
        try:
            address = await self._listen()
            self._gang = self._gang_factory(self._specs(address))
            watch = asyncio.create_task(self._watch_start())
            facts = await self._ready
        except BaseException:
            await self.stop()
            raise
        finally:
            if watch is not None:
                watch.cancel()
        self._expect_beat()
        return facts

    def add(self, request: EngineRequest) -> None:
        self._links[0].send(AddRequest(request))

    def abort(self, request_id: str) -> None:
        if self.reason is None:
            self._links[0].send(AbortRequest(request_id))

    def ranks(self) -> list[RankInfo]:
        """The ranks that have greeted."""
        return [link.info for _, link in sorted(self._links.items()) if link.info is not None]

    async def stop(self) -> None:
        """End all ranks; leave no process, no socket and no file."""
        self._finish("the engine was stopped")
        assert self._end is not None
        await asyncio.shield(self._end)

    def fail(self, reason: str) -> None:
        """The gang is of no use any more: tell, once, and end it."""
        if self.reason is not None:
            return
        silent = [rank for rank, link in self._links.items() if link.missed_beats >= SILENT_BEATS]
        if silent:
            reason += f" (no sign of life from rank {', '.join(map(str, silent))})"
        self._finish(reason)
        if self._ready.done():
            self._on_death(reason)
        else:
            self._ready.set_exception(EngineDeadError(reason))
            self._ready.exception()  # seen, even if nobody waits any more

    # what links call

    def admit(self, hello: Hello, link: _Link) -> bool:
        """Whether this is one of our ranks, and the first to say so."""
        known = hmac.compare_digest(hello.token.encode(), self._token.encode())
        if not known or hello.rank in self._links or self.reason is not None:
            return False
        self._links[hello.rank] = link
        self._on_progress(f"rank {hello.rank} is up (pid {hello.pid})")
        if hello.meeting is not None:
            self._meeting = hello.meeting
            waiting = list(self._links.values())
        else:
            waiting = [link]
        if self._meeting is not None:
            for greeted in waiting:
                greeted.send(self._meeting)
        return True

    def receive(self, rank: int, message: FromRank) -> None:
        if isinstance(message, StepOutputs):
            self._on_step(message.step)
        elif isinstance(message, Progress):
            self._on_progress(message.text)
        elif isinstance(message, Failed):
            self.fail(f"rank {rank}: {message.reason}")
        elif isinstance(message, Ready) and not self._ready.done():
            self._ready.set_result(message.facts)

    # start

    async def _listen(self) -> str:
        loop = asyncio.get_running_loop()
        if self._host is not None:
            server = await loop.create_server(lambda: _Link(self), self._host, 0)
            self._server = server
            for listening in server.sockets:
                tune_tcp(listening)
            return f"tcp://{self._host}:{server.sockets[0].getsockname()[1]}"
        self._directory = tempfile.mkdtemp(prefix="deeprequest-ranks-")
        path = f"{self._directory}/replica.sock"
        self._server = await loop.create_unix_server(lambda: _Link(self), path)
        return f"unix://{path}"

    def _specs(self, address: str) -> list[RankSpec]:
        size = self._config.tensor_parallel_size
        return [
            RankSpec(
                config=self._config,
                rank=rank,
                size=size,
                replica_address=address,
                token=self._token,
                directory=self._directory,
            )
            for rank in range(size)
        ]

    async def _watch_start(self) -> None:
        """A rank that ends before it greets closes no link: ask the gang."""
        gone: set[int] = set()
        while True:
            await asyncio.sleep(START_POLL_S)
            assert self._gang is not None
            dead = await asyncio.to_thread(self._gang.dead)
            for rank in gone & dead.keys() - self._links.keys():
                self.fail(f"rank {rank}: {dead[rank]} before it was up")
            gone = set(dead)

    # life

    def _expect_beat(self) -> None:
        """Counts ticks, not time: a replica that was stopped itself must not blame its ranks."""
        if self.reason is not None:
            return
        period = beat_period(self._config.step_timeout_s)
        for rank, link in self._links.items():
            if link.missed_beats * period > self._config.step_timeout_s:
                return self.fail(
                    f"rank {rank} has been silent for {link.missed_beats * period:g} s"
                )
            link.missed_beats += 1
        asyncio.get_running_loop().call_later(period, self._expect_beat)

    # end

    def _finish(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            for transport in list(self.transports):
                transport.abort()
        if self._end is None:
            self._end = asyncio.create_task(self._clean_up())

    async def _clean_up(self) -> None:
        if self._server is not None:
            self._server.close()
        await asyncio.to_thread(_remove, self._gang, self._directory)


def _remove(gang: Gang | None, directory: str | None) -> None:
    if gang is not None:
        gang.kill()
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)
