"""Tape: commands for a real Redis, written down one by one and played in one round trip.

What each should answer is known beforehand, from the oracle; so a whole example of a state machine
costs one wait for Redis instead of one a step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from serve_app.tenancy.store import STABLE_KEYS, scripts
from tests.serve_app.tenancy.records import layouts

PREFIX = "dr:{machine}:"
Check = Callable[[Any], None]

READERS = "local readers = {}\n" + "".join(
    "\n".join([*layout.lua(), f"readers['{kind}'] = {layout.reader}\n"])
    for kind, layout in layouts().items()
)

STATE = (
    READERS
    + """
-- Everything in the pool, in text, but the records of keys and tenants, the streams, and who was
-- paid for. News is taken away: each is read once. Tenants' lines of promises are told as records.
local function number(x) return type(x) == 'number' and string.format('%.0f', x) or x end
local function record(fields)
  local flat = {}
  for field, value in pairs(fields) do
    flat[#flat + 1] = field
    flat[#flat + 1] = number(value)
  end
  return flat
end
local read = {
  hash = function(key)
    local flat = redis.call('HGETALL', key)
    if string.sub(key, -3) == ':pr' then
      for i = 2, #flat, 2 do flat[i] = record(cmsgpack.unpack(flat[i])) end
    end
    return flat
  end,
  set = function(key) return redis.call('SMEMBERS', key) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  list = function(key)
    local lines = redis.call('LRANGE', key, 0, -1)
    redis.call('DEL', key)
    return lines
  end,
  string = function(key)
    local kind = string.match(string.sub(key, #ARGV[1] + 1), '^[^:]*')
    return record(readers[kind](redis.call('GET', key)))
  end,
}
local skipped = {rules = true, known = true, key = true, ten = true, paid = true}
local held = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  local name = string.sub(key, #ARGV[1] + 1)
  local kind = redis.call('TYPE', key).ok
  if read[kind] and not skipped[string.match(name, '^[^:]*')] then
    held[#held + 1] = name
    held[#held + 1] = read[kind](key)
  end
end
return held
"""
)

DIGEST = """
-- Of every key and value there is, streams too.
local digest = ''
local keys = redis.call('KEYS', '*')
table.sort(keys)
for _, key in ipairs(keys) do
  digest = redis.sha1hex(digest .. key .. redis.call('DUMP', key))
end
return digest
"""


class Tape:
    """One example's commands."""

    def __init__(self, client: redis.Redis) -> None:
        """`client` decodes responses; the scripts were loaded into its server by `load_scripts`."""
        self._pipe = client.pipeline(transaction=False)
        self._execute: Callable[..., Any] = self._pipe.execute_command
        self._checks: list[tuple[tuple[Any, ...], Check]] = []
        self._keys = [PREFIX + key for key in STABLE_KEYS]

    def command(self, *command: str | int | bytes, check: Check = lambda _: None) -> None:
        self._execute(*command)
        self._checks.append((command, check))

    def script(self, now: int, name: str, *args: str | int, check: Check) -> None:
        """A script of ours at the time `now`, in microseconds."""
        tail = (len(self._keys), *self._keys, now, *args)
        self._execute("EVALSHA", scripts()[name].sha, *tail)
        self._checks.append(((name, now, *args), check))

    def state(self, check: Check) -> None:
        """Everything that the pool holds: name -> text or texts."""
        self._pipe.eval(STATE, 0, PREFIX)
        self._checks.append((("state",), lambda flat: check(_pairs(flat))))

    @contextmanager
    def nothing_changes(self) -> Iterator[None]:
        """What is written meanwhile must leave all in Redis as it is, to the byte."""
        before: list[str] = []

        def same(digest: str) -> None:
            assert digest == before[0], "something has changed"

        self.command("EVAL", DIGEST, 0, check=before.append)
        yield
        self.command("EVAL", DIGEST, 0, check=same)

    def play(self) -> None:
        """Raises AssertionError with the command that was answered otherwise than expected."""
        replies = self._pipe.execute()
        for (command, check), reply in zip(self._checks, replies, strict=True):
            try:
                check(reply)
            except AssertionError as error:
                raise AssertionError(f"after {command}: {error}") from error
        self._checks.clear()


def load_scripts(client: redis.Redis) -> None:
    """Into the server, for EVALSHA in pipelines."""
    for script in scripts().values():
        client.script_load(script.text)


def _pairs(flat: list[Any]) -> dict[str, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
