"""Redis hears of all that was written down, once."""

import os
from pathlib import Path

import msgspec
import pytest
import structlog

from serve_app.tenancy.journals import CHUNK, Journals
from tests.serve_app.tenancy.test_journal import entry
from tests.serve_app.tenancy.world import World

pytestmark = pytest.mark.anyio


async def length(world: World) -> int:
    return int(await world.raw("XLEN", "led"))


async def test_all_entries_are_told_and_told_again_they_count_once(
    world: World, tmp_path: Path
) -> None:
    key = (await world.key()).key
    journals, count = Journals(tmp_path, "one"), 2 * CHUNK + 5
    whose = {"digest": key.digest, "key_id": key.id, "tenant": key.tenant}
    entries = [
        msgspec.structs.replace(entry(f"r{number}", output=3), **whose) for number in range(count)
    ]
    for _ in range(2):
        for one in entries:
            journals.append(one)
        assert journals.unheard_bytes > 0
        await journals.sync()
        await journals.replay(world.store)
        assert journals.unheard_bytes == 0
        assert await length(world) == count
    assert await world.store.run("usage", f"k:{key.id}") == [count, 2 * count, 0, 3 * count]
    journals.close()
    assert list(tmp_path.glob("*.jsonl")) == []


async def test_an_empty_redis_is_told_nothing_before_it_has_its_keys(
    world: World, tmp_path: Path
) -> None:
    journals = Journals(tmp_path, "one")
    journals.append(entry("r0"))
    await journals.replay(world.store)
    assert journals.unheard_bytes > 0
    await world.key()
    await journals.replay(world.store)
    assert await length(world) == 1


async def test_what_no_disk_takes_is_told_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    journals = Journals(tmp_path, "one")
    monkeypatch.setattr(os, "write", full)
    with structlog.testing.capture_logs() as told:
        journals.append(entry("r0"))
    assert [(line["event"], line["rid"]) for line in told] == [("journal_unwritable", "r0")]
    assert journals.unheard_bytes == 0
