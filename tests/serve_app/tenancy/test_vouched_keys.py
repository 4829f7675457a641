"""Whose word counts for how long."""

import pytest

from serve_app.tenancy import vouched_keys
from serve_app.tenancy.admission import Identity
from serve_app.tenancy.refusals import Figures, StoreUnavailable
from serve_app.tenancy.vouched_keys import VouchedKeys


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def identity(digest: str) -> Identity:
    return Identity("k", "acme", digest, Figures())


def test_a_key_is_good_until_the_time_is_over_or_redis_refuses_it() -> None:
    clock = Clock()
    keys = VouchedKeys(10.0, clock=clock)
    keys.note(identity("a"))
    keys.note(identity("b"))
    clock.now = 9.0
    keys.note(identity("b"))
    assert keys.find("a").digest == "a"
    clock.now = 11.0
    with pytest.raises(StoreUnavailable):
        keys.find("a")
    assert keys.find("b").digest == "b"
    keys.drop("b")
    for unknown in ("b", "never"):
        with pytest.raises(StoreUnavailable):
            keys.find(unknown)


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vouched_keys, "MOST_KEYS", 3)
    keys = VouchedKeys(10.0)
    for digest in "abcd":
        keys.note(identity(digest))
    with pytest.raises(StoreUnavailable):
        keys.find("a")
    assert [keys.find(digest).digest for digest in "bcd"] == ["b", "c", "d"]
