"""The delta links, both ends over real sockets."""

import asyncio
import socket
import time
from collections.abc import Callable

import pytest
import uvloop

from cluster.request import FinishReason, RequestOutput
from serve_app.deltas import DeltaAddress, DeltaLinks, DeltaServer, ReplicaLostError
from serve_app.deltas import server as server_module
from serve_app.deltas.messages import READ_BYTES


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def started_server() -> DeltaServer:
    server = DeltaServer("127.0.0.1", [free_port()])
    await server.start()
    return server


def text(request_id: str, content: str, last: bool = False) -> RequestOutput:
    reason = FinishReason.STOP if last else None
    return RequestOutput(request_id, content=content, finish_reason=reason)


def test_each_stream_gets_its_own_deltas_in_order() -> None:
    async def scenario() -> None:
        server = await started_server()
        links = DeltaLinks("replica-1", lambda _: None)
        streams = {name: server.open([name]) for name in ("a", "b")}
        await links.connect(server.address)
        for step in range(200):
            outputs = [text(name, f"{name}{step} ", last=step == 199) for name in streams]
            links.send(server.address, outputs)
        for name, stream in streams.items():
            seen: list[RequestOutput] = []
            while not seen or seen[-1].finish_reason is None:
                seen += await asyncio.wait_for(stream.take(), 5)
            assert "".join(o.content for o in seen) == "".join(f"{name}{i} " for i in range(200))
        await links.close()
        await server.stop()

    uvloop.run(scenario())


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
def test_frames_larger_than_a_read_arrive_whole(run: Callable[..., None]) -> None:
    async def scenario() -> None:
        server = await started_server()
        links = DeltaLinks("replica-1", lambda _: None)
        stream = server.open(["a"])
        await links.connect(server.address)
        sizes = [1, READ_BYTES - 40, READ_BYTES, 3 * READ_BYTES, 10, 20 * READ_BYTES, 7]
        for place, size in enumerate(sizes):
            links.send(server.address, [text("a", f"{place % 10}" * size, place == len(sizes) - 1)])
        seen: list[RequestOutput] = []
        while not seen or seen[-1].finish_reason is None:
            seen += await asyncio.wait_for(stream.take(), 5)
        assert [output.content for output in seen] == [
            f"{place % 10}" * size for place, size in enumerate(sizes)
        ]
        await links.close()
        await server.stop()

    run(scenario())


def test_losing_a_replica_fails_only_the_streams_it_fed() -> None:
    async def scenario() -> None:
        server = await started_server()
        first = DeltaLinks("replica-1", lambda _: None)
        second = DeltaLinks("replica-2", lambda _: None)
        fed_by_first, fed_by_second = server.open(["a"]), server.open(["b"])
        for links, name in ((first, "a"), (second, "b")):
            await links.connect(server.address)
            links.send(server.address, [text(name, "x")])
        await fed_by_first.take()
        await fed_by_second.take()
        await first.close()
        with pytest.raises(ReplicaLostError):
            await asyncio.wait_for(fed_by_first.take(), 5)
        second.send(server.address, [text("b", "y", last=True)])
        assert (await asyncio.wait_for(fed_by_second.take(), 5))[-1].content == "y"
        await second.close()
        await server.stop()

    uvloop.run(scenario())


def test_a_wrong_token_gets_nothing_in() -> None:
    async def scenario() -> None:
        server = await started_server()
        lost: list[DeltaAddress] = []
        impostor = DeltaLinks("replica-1", lost.append)
        stream = server.open(["a"])
        forged = DeltaAddress(server.address.host, server.address.port, "not the token")
        await impostor.connect(forged)
        impostor.send(forged, [text("a", "forged")])
        while not lost:
            await asyncio.sleep(0.01)
        assert lost == [forged]
        assert await stream.take(timeout_s=0.1) == []
        await server.stop()

    uvloop.run(scenario())


def test_a_vanished_ingress_is_reported_once_to_the_replica() -> None:
    async def scenario() -> None:
        lost: list[DeltaAddress] = []
        links = DeltaLinks("replica-1", lost.append)
        ingress = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        address = DeltaAddress("127.0.0.1", ingress.sockets[0].getsockname()[1], "t")
        await links.connect(address)
        while not lost:
            await asyncio.sleep(0.01)
        links.send(address, [text("a", "x")])
        assert lost == [address]
        ingress.close()

    uvloop.run(scenario())


def test_dialling_a_closed_port_raises() -> None:
    async def scenario() -> None:
        links = DeltaLinks("replica-1", lambda _: None)
        with pytest.raises(ConnectionRefusedError):
            await links.connect(DeltaAddress("127.0.0.1", free_port(), "t"))

    uvloop.run(scenario())


def test_no_free_port_names_the_setting() -> None:
    async def scenario() -> None:
        taken = await started_server()
        with pytest.raises(OSError, match=r"deltas\.min_port"):
            await DeltaServer("127.0.0.1", [taken.address.port]).start()
        await taken.stop()

    uvloop.run(scenario())


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
def test_an_ingress_that_stood_still_does_not_take_its_replicas_for_dead(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LINK_TIMEOUT_S", 0.3)

    async def scenario() -> None:
        server = await started_server()
        links = DeltaLinks("replica-1", lambda _: None)
        stream = server.open(["a"])
        await links.connect(server.address)
        links.send(server.address, [text("a", "x")])
        assert await asyncio.wait_for(stream.take(), 5) == [text("a", "x")]
        time.sleep(0.6)  # the whole loop, as when its process is stopped
        links.send(server.address, [text("a", "y", last=True)])
        assert await asyncio.wait_for(stream.take(), 5) == [text("a", "y", last=True)]
        await links.close()
        await server.stop()

    run(scenario())


def test_a_replica_that_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LINK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(server_module, "DOUBT_S", 0.05)

    async def scenario() -> None:
        server = await started_server()
        links = DeltaLinks("replica-1", lambda _: None)
        stream = server.open(["a"])
        await links.connect(server.address)
        links.send(server.address, [text("a", "x")])
        await asyncio.wait_for(stream.take(), 5)
        with pytest.raises(ReplicaLostError):
            await asyncio.wait_for(stream.take(), 5)
        await server.stop()

    uvloop.run(scenario())
