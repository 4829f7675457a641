"""Whole scripts from parts: what a script gets of them, and that Redis takes it."""

from pathlib import Path

import redis

from serve_app.tenancy.composition import compose
from serve_app.tenancy.redis_server import RedisServer

COMMON = """-- Common.
local P = KEYS[1]
local function twice(x)
  return x + x
end
local unused = twice(2)
"""
PART = """local A, B = {1, 2}, {
  -- what B is
  c = 3,
}

-- Needed by the next.
local function base(x) return twice(x) + A[2] end

local function asked(x)
  if x == 0 then return P end  -- at once
  return base(x)
end

local function unasked() return asked(B.c) end
"""
BODY = """-- uses: common part
-- TELL <x>

local x = tonumber(ARGV[1])
if x > 5 then
  return 'large'
end
return asked(x)
"""


def folder_of(path: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (path / f"{name}.lua").write_text(text)
    return path


def test_a_script_gets_what_it_needs_of_its_parts_and_no_more(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    text = compose(folder_of(tmp_path, common=COMMON, part=PART, tell=BODY), "tell")
    path = redis_server.url.removeprefix("unix://")
    with redis.Redis(unix_socket_path=path, decode_responses=True) as client:
        assert [client.eval(text, 1, "key", x) for x in (0, 1, 6)] == ["key", 4, "large"]
    assert not [name for name in ("unused", "unasked", "--") if name in text]
    assert all(name in text for name in ("twice", "base", "local A, B"))


def test_what_defines_nothing_is_kept(tmp_path: Path) -> None:
    common = "local n = 1\nn = 2\nlocal other = 3\n"
    text = compose(folder_of(tmp_path, common=common, tell="-- uses: common\nreturn n\n"), "tell")
    assert text.splitlines() == ["local n = 1", "n = 2", "return (function()", "return n", "end)()"]


ROOMS = """local LIMIT = {7}
local function near(x) return x + LIMIT[1] end
local function far(x) return near(x) * 10 end
local function farther(x) return far(x) + 1 end

local function often(x) return near(x) end

local function first(near, x)  -- seldom
  if near == 'none' then return 0, x end
  return farther(x), near
end

local function second(x)  -- seldom
  return far(x)
end
"""
TOLD = """-- uses: common rooms
local x = tonumber(ARGV[1])
local function told(...) return {...} end
if x == 0 then return told(first('none', 5)) end
if x == 1 then return {second(x)} end
if x == 2 then return told(first('kept', x)) end
return {often(x)}
"""


def test_what_seldom_functions_need_is_made_when_they_are_entered(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    text = compose(folder_of(tmp_path, common=COMMON, rooms=ROOMS, tell=TOLD), "tell")
    path = redis_server.url.removeprefix("unix://")
    with redis.Redis(unix_socket_path=path, decode_responses=True) as client:
        replies = [client.eval(text, 1, "key", x) for x in (0, 1, 2, 3)]
    assert replies == [[0, 5], [80], [91, "kept"], [10]]
    before_rooms = text[: text.index("local function first(...)")]
    assert "function near" in before_rooms  # it is needed often, too
    assert "function far" not in before_rooms
    assert text.count("local function near") == 1
    assert text.count("local function far(") == 2  # once in each room
    assert text.count("local function farther(") == 1


def test_a_seldom_function_that_needs_nothing_of_its_own_stays_as_it_is(tmp_path: Path) -> None:
    part = "local function alone(x)  -- seldom\n  return P .. x\nend\n"
    body = "-- uses: common part\nreturn alone(1)\n"
    text = compose(folder_of(tmp_path, common=COMMON, part=part, tell=body), "tell")
    assert "local function alone(x)\n  return P .. x\nend" in text


def test_numbers_in_capitals_are_written_out_but_not_in_texts_and_fields(tmp_path: Path) -> None:
    part = "local LIMIT, MANY = 10, 7\nlocal function f(t) return t.LIMIT + LIMIT * MANY end\n"
    body = "-- uses: common part\nreturn f({}) .. 'LIMIT'\n"
    text = compose(folder_of(tmp_path, common=COMMON, part=part, tell=body), "tell")
    assert "local LIMIT" not in text
    assert "return t.LIMIT + 10 * 7" in text
    assert ".. 'LIMIT'" in text
