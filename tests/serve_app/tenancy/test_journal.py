"""What an ingress writes down while Redis is away, and what becomes of it."""

import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from serve_app.tenancy.journal import Entry, Journal, JournalError, inherited

pytestmark = pytest.mark.anyio


def entry(rid: str, *, output: int = 1) -> Entry:
    return Entry(
        rid=rid,
        digest="d",
        key_id="k",
        tenant="acme",
        service_class="default",
        model="m",
        price="",
        outcome="ok",
        prompt=2,
        cached=0,
        output=output,
        reasoning=0,
        ran_ms=5,
    )


def heard(journal: Journal) -> list[str]:
    rids = [one.rid for one in journal.read(64)]
    journal.done()
    return rids


async def test_entries_come_back_in_order_and_go_when_they_were_heard(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "a.jsonl")
    for number in range(5):
        journal.append(entry(f"r{number}"))
    await journal.sync()
    assert [one.rid for one in journal.read(2)] == ["r0", "r1"]
    assert [one.rid for one in journal.read(2)] == ["r0", "r1"]  # nobody said that it was heard
    journal.done()
    journal.append(entry("r5"))
    assert heard(journal) == ["r2", "r3", "r4", "r5"]
    assert journal.unheard_bytes == journal.path.stat().st_size == 0
    assert journal.path.stat().st_mode & 0o077 == 0
    journal.close()
    assert not journal.path.exists()


async def test_what_a_dead_ingress_left_is_inherited_once(tmp_path: Path) -> None:
    own, dead = tmp_path / "own.jsonl", Journal(tmp_path / "dead.jsonl")
    dead.append(entry("r0"))
    assert inherited(tmp_path, own) == []  # it still lives
    dead.close()
    (left,) = inherited(tmp_path, own)
    assert inherited(tmp_path, own) == []
    assert heard(left) == ["r0"]
    left.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_torn_last_line_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    journal = Journal(path)
    journal.append(entry("r0"))
    journal.append(entry("r1"))
    journal.close()
    os.truncate(path, path.stat().st_size - 7)
    again = Journal(path)
    assert heard(again) == ["r0"]
    assert heard(again) == []
    assert again.unheard_bytes == 0


async def test_a_folder_that_cannot_be_written_is_named_with_the_settings(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"state_dir .* admission\.on_outage"):
        Journal(tmp_path / "file" / "a.jsonl")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.integers(1, 9), st.just("crash")), max_size=30))
def test_no_entry_is_lost_whatever_happens_between(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int | str]
) -> None:
    path, written, told = tmp_path_factory.mktemp("j") / "a.jsonl", 0, []
    journal = Journal(path)
    for step in steps:
        if step == "crash":  # after the reading, before anybody said so
            told += [one.rid for one in journal.read(3)]
            os.close(journal._file)
            journal = Journal(path)
            continue
        for _ in range(int(step)):
            journal.append(entry(f"r{written}"))
            written += 1
        told += [one.rid for one in journal.read(int(step) // 2)]
        journal.done()
    while journal.unheard_bytes:
        told += heard(journal)
    assert list(dict.fromkeys(sorted(told, key=lambda rid: int(rid[1:])))) == [
        f"r{number}" for number in range(written)
    ]
    journal.close()
