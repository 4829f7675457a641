import asyncio

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from serve_app.stall_guard import stall_guard

BODY: Message = {"type": "http.response.body", "body": b"x", "more_body": True}


class Connection:
    """Takes messages while it is open."""

    def __init__(self) -> None:
        self.taken: list[Message] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, message: Message) -> None:
        await self.open.wait()
        self.taken.append(message)


async def send_for_ever(connection: Connection, timeout_s: float, pause_s: float = 0.0) -> None:
    async with stall_guard(connection.send, timeout_s) as send:
        while True:
            await send(BODY)
            await asyncio.sleep(pause_s)


def test_a_reader_that_takes_nothing_is_taken_for_gone() -> None:
    async def scenario() -> None:
        connection = Connection()
        sending = asyncio.create_task(send_for_ever(connection, 0.05, 0.001))
        await asyncio.sleep(0.02)
        connection.open.clear()
        with pytest.raises(ClientDisconnect):
            await sending
        assert connection.taken
        assert sending.cancelling() == 0

    asyncio.run(scenario())


def test_a_slow_reader_and_a_silent_model_are_waited_for() -> None:
    async def scenario() -> None:
        connection = Connection()
        sending = asyncio.create_task(send_for_ever(connection, 0.5, 0.75))
        for _ in range(4):
            connection.open.clear()
            await asyncio.sleep(0.25)
            connection.open.set()
            await asyncio.sleep(0.25)
        assert not sending.done()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    asyncio.run(scenario())


def test_the_blocks_own_error_passes() -> None:
    async def scenario() -> None:
        with pytest.raises(ZeroDivisionError):
            async with stall_guard(Connection().send, 0.01):
                raise ZeroDivisionError

    asyncio.run(scenario())
