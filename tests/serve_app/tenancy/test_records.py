"""Records in Redis: what Lua writes and reads, beside Python's reading of the same bytes."""

from typing import Any

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, given, settings

from serve_app.tenancy.records import MOST, Layout, layout_of
from serve_app.tenancy.redis_server import RedisServer
from tests.serve_app.tenancy.records import layouts, pack, unpack

NUMBERS = st.integers(-(2**53), 2**53)
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)


def declared(words: str) -> Layout:
    layout = layout_of(f"local read_x, pack_x = record [[\n  {words}\n]]")
    assert layout is not None
    return layout


def through(client: redis.Redis, written: bytes, layout: Layout) -> bytes:
    """What is written again of what was read."""
    text = "\n".join([*layout.lua(), f"return {layout.packer}({layout.reader}(ARGV[1]))"])
    packed: Any = client.eval(text, 0, written)
    return bytes(packed)


@pytest.fixture(scope="module")
def client(redis_server: RedisServer) -> redis.Redis:
    return redis.Redis(unix_socket_path=redis_server.url.removeprefix("unix://"))


@pytest.mark.parametrize("kind", ["pool", "req", "mt"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_read_is_written_again_to_the_byte(
    client: redis.Redis, kind: str, data: st.DataObject
) -> None:
    layout = layouts()[kind]
    values = {f: data.draw(TEXTS if f in layout.texts else NUMBERS) for f in layout.fields}
    written = pack(kind, values)
    assert unpack(kind, written) == values
    assert through(client, written, layout) == written


def test_fields_that_are_not_known_yet_read_as_nothing(client: redis.Redis) -> None:
    older, newer = declared("name=s a b"), declared("name=s a b more text=s last")
    written = b"\x03some\0" + bytes(8) + b"\0\0\0\0\0\0\xf0?"
    assert through(client, written, older) == written
    grown = through(client, written, newer)
    assert grown == b"\x06" + written[1:] + bytes(8) + b"\0" + bytes(8)
    assert through(client, grown, older) == written


def test_what_is_not_there_has_no_fields(client: redis.Redis) -> None:
    layout = declared("name=s a")
    text = "\n".join([*layout.lua(), f"return {layout.packer}({layout.reader}(false))"])
    assert client.eval(text, 0) == b"\x02\0" + bytes(8)


def test_a_record_may_have_so_many_fields_and_no_more() -> None:
    fields = [f"f{n}" for n in range(MOST)]
    assert declared(" ".join(fields)).fields == tuple(fields)
    with pytest.raises(ValueError, match="201 fields, 200 at most"):
        declared(" ".join([*fields, "last"]))


def test_other_statements_declare_none() -> None:
    assert layout_of("local read_x = 3") is None
