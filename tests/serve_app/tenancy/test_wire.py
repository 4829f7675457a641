import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError

from serve_app.tenancy.redis_server import RedisServer
from serve_app.tenancy.wire import Wire
from tests.serve_app.tenancy.world import World

pytestmark = pytest.mark.anyio
FOR_EVER_S = 60.0


class Line:
    """A connection whose other end a test holds: it sees writes and answers by letters."""

    def __init__(self) -> None:
        self.end, self._own = socket.socketpair()
        self.end.setblocking(False)
        self.writes: list[bytes] = []

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=self._own)

    async def disconnect(self, nowait: bool = False) -> None:
        self._writer.close()
        self.end.close()

    async def send_packed_command(self, command: bytes, check_health: bool = True) -> None:
        self.writes.append(command)

    async def read_response(self, *, disconnect_on_error: bool = True) -> str:
        letter = (await self._reader.read(1)).decode()
        if not letter:
            raise ConnectionError("the other end is gone")
        if letter == "!":
            raise ResponseError("no")
        return letter

    def answer(self, letters: str) -> None:
        self.end.send(letters.encode())


class Lines:
    """All connections that a wire has opened."""

    def __init__(self) -> None:
        self.all: list[Line] = []

    def __call__(self) -> Line:
        self.all.append(Line())
        return self.all[-1]

    async def asked(self, count: int = 1) -> Line:
        """The newest one, once so many commands were written to it."""
        while not self.all or b"".join(self.all[-1].writes).count(b"*1\r\n") < count:
            await asyncio.sleep(0)
        return self.all[-1]


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
async def wired(lines: Lines) -> AsyncIterator[Callable[[float], Wire]]:
    wires = []

    def wire(silence_s: float) -> Wire:
        wires.append(Wire(lines, {"LOUD": str.upper}, silence_s))
        return wires[-1]

    yield wire
    for one in wires:
        await one.aclose()


Wired = Callable[[float], Wire]


async def test_calls_of_one_moment_are_one_write_and_get_their_answers_in_order(
    lines: Lines, wired: Wired
) -> None:
    wire = wired(FOR_EVER_S)
    calls = [asyncio.create_task(wire.call(("A",))) for _ in range(3)]
    calls.append(asyncio.create_task(wire.call(("LOUD",))))
    line = await lines.asked(4)
    assert len(line.writes) == 1
    line.answer("abcd")
    assert await asyncio.gather(*calls) == ["a", "b", "c", "D"]


async def test_a_refused_command_is_an_answer_like_others(lines: Lines, wired: Wired) -> None:
    wire = wired(FOR_EVER_S)
    calls = [asyncio.create_task(wire.call(("A",))) for _ in range(3)]
    (await lines.asked(3)).answer("a!c")
    first, second, third = await asyncio.gather(*calls, return_exceptions=True)
    assert (first, third) == ("a", "c")
    assert isinstance(second, ResponseError)
    assert len(lines.all) == 1


async def test_who_left_takes_nobodys_answer(lines: Lines, wired: Wired) -> None:
    wire = wired(FOR_EVER_S)
    leaving, staying = (asyncio.create_task(wire.call(("A",))) for _ in range(2))
    line = await lines.asked(2)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    line.answer("ab")
    assert await staying == "b"


async def test_silence_fails_all_that_wait_and_the_next_call_opens_another_connection(
    lines: Lines, wired: Wired
) -> None:
    wire = wired(0.05)
    calls = [asyncio.create_task(wire.call(("A",))) for _ in range(3)]
    failed = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in failed] == [TimeoutError] * 3
    again = asyncio.create_task(wire.call(("A",)))
    while len(lines.all) < 2:
        await asyncio.sleep(0)
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)


async def test_a_lost_connection_fails_what_waits_and_is_replaced(
    lines: Lines, wired: Wired
) -> None:
    wire = wired(FOR_EVER_S)
    lost = asyncio.create_task(wire.call(("A",)))
    (await lines.asked()).end.close()
    with pytest.raises(RedisError):
        await lost
    again = asyncio.create_task(wire.call(("A",)))
    while len(lines.all) < 2:
        await asyncio.sleep(0)
    (await lines.asked()).answer("a")
    assert await again == "a"


async def test_who_waits_behind_many_is_in_no_outage_while_answers_come(
    lines: Lines, wired: Wired
) -> None:
    silence_s = 1.0
    wire, began = wired(silence_s), time.monotonic()
    calls = [asyncio.create_task(wire.call(("A",))) for _ in range(1000)]
    line, told = await lines.asked(1000), 0
    while time.monotonic() < began + 1.5 * silence_s:
        line.answer("a")
        told += 1
        await asyncio.sleep(silence_s / 20)
    line.answer("a" * (1000 - told))
    assert await asyncio.gather(*calls) == ["a"] * 1000


async def test_a_loop_that_was_held_up_does_not_blame_redis(lines: Lines, wired: Wired) -> None:
    wire = wired(0.2)
    call = asyncio.create_task(wire.call(("A",)))
    (await lines.asked()).answer("a")
    time.sleep(0.5)  # the answer is there before anybody can look
    assert await call == "a"


async def test_a_real_redis_answers_thousands_at_once(redis_server: RedisServer) -> None:
    async with World(redis_server.url, redis_server.data_dir) as world:
        numbers = range(3000)
        await asyncio.gather(*(world.store.command("SET", f"w:{n}", n) for n in numbers))
        got = await asyncio.gather(*(world.store.command("GET", f"w:{n}") for n in numbers))
        assert got == [str(number) for number in numbers]
