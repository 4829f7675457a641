"""What a Redis URL may say, and what is said of a wrong one."""

import pytest

from serve_app.tenancy.redis_url import RedisTarget, RedisUrlError, read_url


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("redis://a", RedisTarget(hosts=(("a", 6379),))),
        ("redis://a:7/3", RedisTarget(hosts=(("a", 7),), db=3)),
        (
            "rediss://u:p%40ss@[::1]:7?ca_file=/etc/ca.pem",
            RedisTarget(
                hosts=(("::1", 7),), username="u", password="p@ss", tls=True, ca_file="/etc/ca.pem"
            ),
        ),
        ("redis://:secret@a", RedisTarget(hosts=(("a", 6379),), password="secret")),
        ("unix:///tmp/r.sock", RedisTarget(socket="/tmp/r.sock")),
        (
            "redis+sentinel://u:p@a,b:7/main/2?sentinel_password=q",
            RedisTarget(
                kind="sentinel",
                hosts=(("a", 26379), ("b", 7)),
                service="main",
                db=2,
                username="u",
                password="p",
                sentinel_password="q",
            ),
        ),
        (
            "rediss+cluster://a,b",
            RedisTarget(kind="cluster", hosts=(("a", 6379), ("b", 6379)), tls=True),
        ),
    ],
)
def test_every_form_is_understood(url: str, target: RedisTarget) -> None:
    assert read_url(url) == target


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://a", "redis\\+sentinel"),
        ("a:6379", "redis\\+sentinel"),
        ("redis://", "host is missing"),
        ("redis://a:70000", "1 to 65535"),
        ("redis://a:x", "1 to 65535"),
        ("redis://a,b", "redis\\+sentinel or redis\\+cluster"),
        ("redis://a/x", "number of a database"),
        ("redis+sentinel://a", "name of the master is missing"),
        ("redis+cluster://a/1", "nothing may follow"),
        ("redis://a?timeout=3", "'timeout' is none of"),
        ("redis://a?ca_file=/x", "with rediss alone"),
        ("redis://a?sentinel_password=x", "with redis\\+sentinel alone"),
        ("unix://", "unix:///path"),
    ],
)
def test_a_wrong_one_names_the_setting_and_the_reason(url: str, why: str) -> None:
    with pytest.raises(RedisUrlError, match=why) as refused:
        read_url(url)
    assert "admission.redis_url" in str(refused.value)


def test_the_account_is_not_shown() -> None:
    for url in ("redis://user:hidden@a/1", "redis+sentinel://user:hidden@a,b:7/main"):
        shown = read_url(url).shown()
        assert "hidden" not in shown
        assert "user" not in shown
    assert read_url("rediss+cluster://u:p@a,b").shown() == "rediss+cluster://a:6379,b:6379"
    with pytest.raises(RedisUrlError) as refused:
        read_url("redis://u:hidden@a:x")
    assert "hidden" not in str(refused.value)
